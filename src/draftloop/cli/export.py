"""`adapters export`: a version for plain mlx-lm, alone or in its draft's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .app import App, config_option, json_option, model_options, note, print_json
from .benchmark import note_damage, note_near_two_splits
from .output import Doing

if TYPE_CHECKING:
    from ..data.records import Record
    from ..export.export import Exported
    from ..export.verify import Measured


@click.command(cls=Doing)
@click.argument("version")
@click.option(
    "--to",
    "destination",
    required=True,
    metavar="DIR",
    type=click.Path(readable=False, path_type=Path),
    help="Directory to make; not there yet, or empty.",
)
@click.option("--fuse", is_flag=True, help="A whole draft with the adapter in its weights, for --draft-model.")
@click.option("--q-bits", type=int, help="With --fuse: bits a weight (2, 3, 4, 5, 6, 8).  [default: as the draft]")
@click.option("--q-group-size", type=int, help="With --fuse: group size (32, 64, 128).  [default: as the draft]")
@click.option("--dequantize", is_flag=True, help="With --fuse: leave the weights float.")
@click.option("--limit", type=click.IntRange(min=1), help="Measure on so many held-out generations.")
@config_option("--num-draft-tokens", key="speculative.num_draft_tokens", type=int)
@model_options
@json_option
@click.pass_obj
def export_command(
    app: App,
    version: str,
    destination: Path,
    fuse: bool,
    q_bits: int | None,
    q_group_size: int | None,
    dequantize: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Write VERSION (champion, latest or vNNNN) for plain mlx-lm, with a model card.

    What is written is loaded back, and its acceptance measured on the logged held-out generations.
    """
    from ..export.export import export, plan_export
    from ..export.fuse import Quantization
    from .progress import Steps

    quantization = Quantization(q_bits, q_group_size, dequantize)
    job = plan_export(app.data.registry, version, destination, fuse=fuse, quantization=quantization)
    pair = app.load_pair("none")
    held_out, group_of = _held_out(app, limit), app.data.log.groups().group_of
    with Steps() as steps:
        steps.at("exporting", 0, 0)
        made = export(job, pair, app.config, held_out, note, group_of=group_of)
    for change in made.measured.lost() if made.measured else []:
        note(
            f"what was written makes {-change.delta_acceptance_length:.3f} tokens a round less than the adapter (rule "
            f"{change.rule}): its rounding costs that; --q-bits 8 or --dequantize keeps more"
        )
    if as_json:
        print_json({"status": "ok", **made.to_json()})
    else:
        _print(made)


def _held_out(app: App, limit: int | None) -> list[Record]:
    log = app.data.log
    found = list(log.records({"heldout"}))[:limit]
    note_damage(log)
    note_near_two_splits(log.near_two_splits)
    return found


def _print(made: Exported) -> None:
    from .tables import print_text

    what = "draft with the adapter in its weights" if made.fused else "adapter"
    print_text(f"{made.path}: {what}, {made.version}; {made.weights}")
    if made.measured is None:
        print_text(f"not measured: {made.not_measured}")
    else:
        _print_measured(made.measured)


def _print_measured(found: Measured) -> None:
    from .tables import interval, print_table, print_text, sampler_in_words

    conditions = found.conditions
    pair = conditions["pair"]
    print_text(
        f"{conditions['texts']} held-out texts of {conditions['prompt_groups']} prompts, {conditions['tokens']:,} "
        f"tokens; K = {conditions['num_draft_tokens']}; intervals: {conditions['interval']}, seed {conditions['seed']}"
    )
    samplers = "; ".join(sampler_in_words(sampler) for sampler in conditions["samplers"])
    print_text(f"target {pair['target'][:12]}, draft {pair['draft'][:12]}; {samplers}")
    print_table(
        ["draft", "rule", "accepted per position", "acceptance rate", "acceptance length", "95%"],
        [
            [
                row.adapter,
                row.rule,
                row.acceptance_per_position,
                row.acceptance_rate,
                row.acceptance_length,
                interval(row.ci_low, row.ci_high),
            ]
            for row in found.results
        ],
    )
    print_table(
        ["difference", "rule", "gained length", "95%"],
        [
            [
                f"{change.of} minus {change.against}",
                change.rule,
                change.delta_acceptance_length,
                interval(change.ci_low, change.ci_high, signed=True),
            ]
            for change in found.comparison
        ],
        title="paired",
    )
    from ..export.verify import below_in_words

    for change in found.below_bare_draft():
        print_text(below_in_words(change))
