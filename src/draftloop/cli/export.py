"""`adapters export`: writes a version for plain mlx-lm, as an adapter or fused into its draft's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .app import App, note, print_json
from .benchmark import note_damaged_lines, note_near_two_splits, print_conditions
from .options import PATH, config_options, json_option, model_options
from .output import Doing

if TYPE_CHECKING:
    from ..export.export import Exported


@click.command(cls=Doing)
@click.argument("version")
@click.option(
    "--to",
    "destination",
    required=True,
    metavar="DIR",
    type=PATH,
    help="Directory to write, new or empty.",
)
@click.option("--fuse", is_flag=True, help="Write the whole draft with the adapter fused into its weights.")
@click.option("--q-bits", type=int, help="With --fuse: bits per weight (2, 3, 4, 5, 6, 8).  [default: as the draft]")
@click.option("--q-group-size", type=int, help="With --fuse: group size (32, 64, 128).  [default: as the draft]")
@click.option("--dequantize", is_flag=True, help="With --fuse: keep float weights.")
@click.option("--limit", type=click.IntRange(min=1), help="Measure on at most this many held-out generations.")
@config_options("speculative", "num_draft_tokens")
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
    """Write an adapter version for plain mlx-lm.

    VERSION is champion, latest or vNNNN. The files come with a model card: they are loaded back, and their acceptance
    is measured on the logged held-out generations.
    """
    from ..export.export import export_version, plan_export
    from ..export.fuse import Quantization
    from .progress import Steps

    quantization = Quantization(q_bits, q_group_size, dequantize)
    job = plan_export(app.data.registry, version, destination, fuse=fuse, quantization=quantization)
    pair, log = app.load_pair("none"), app.data.log
    held_out, group_of = list(log.records({"heldout"}))[:limit], log.groups().group_of
    note_damaged_lines(log)
    note_near_two_splits(log.near_two_splits)
    with Steps() as steps:
        steps.at("exporting", 0, 0)
        made = export_version(job, pair, app.config, held_out, note, group_of=group_of)
    for change in made.measured.lost() if made.measured else []:
        note(
            f"the export has an acceptance length {-change.delta_acceptance_length:.3f} below the adapter's (rule "
            f"{change.rule}), because its weights are rounded; --q-bits 8 or --dequantize keeps more"
        )
    if as_json:
        print_json({"status": "ok", **made.to_json()})
    else:
        _print(made)


def _print(made: Exported) -> None:
    from ..export.verify import below_in_words
    from .tables import ACCEPTANCE, GAIN, Columns, print_records, print_text

    what = "draft with the adapter in its weights" if made.fused else "adapter"
    print_text(f"{made.path}: {what}, {made.version}; {made.weights}")
    measured = made.measured
    if measured is None:
        print_text(f"not measured: {made.not_measured}")
        return
    print_conditions(measured.conditions, "held-out generations", f"K = {measured.conditions['num_draft_tokens']}")
    print_records(measured.results, {"draft": "adapter", "rule": "rule", **ACCEPTANCE})
    difference: Columns = {"difference": lambda change: f"{change.of} minus {change.against}", "rule": "rule"}
    print_records(measured.comparison, {**difference, **GAIN}, title="paired")
    for change in measured.below_bare_draft():
        print_text(below_in_words(change))
