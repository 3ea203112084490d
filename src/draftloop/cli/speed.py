"""`benchmark speed`: how fast a pair decodes here, in every way there is, and the draft length that follows."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import PromptError
from .app import App, adapter_option, json_option, model_options, note, print_json, sampler_options
from .benchmark import draft_lengths_option, held_out_records, rule_option
from .output import Doing

if TYPE_CHECKING:
    from ..known_costs import KnownCosts
    from ..pair import Pair
    from ..prompts import Prompt
    from ..records import Record
    from ..speculative.decoder import Settings
    from ..speed import Report


@click.command(cls=Doing)
@adapter_option("Adapter of the draft.")
@click.option("--prompts-file", type=click.Path(path_type=Path), help="Prompts to decode; by default held-out ones.")
@click.option("--limit", type=click.IntRange(min=1), default=8, show_default=True, help="Use so many prompts.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Passes that count.")
@draft_lengths_option("1,2,3,4,6,8")
@rule_option("auto: greedy at temperature 0, rejection and block above.")
@sampler_options
@model_options
@json_option
@click.pass_obj
def speed(
    app: App,
    adapter: str,
    prompts_file: Path | None,
    limit: int,
    repeats: int,
    lengths: list[int],
    rule: str,
    as_json: bool,
) -> None:
    """Decode for real, in every way: the target alone, mlx-lm's speculation, and draftloop's at each rule and K.

    All take turns on the same prompts: 8 held-out ones, three times after a pass to warm up. ± is the spread of
    tokens/s over the passes. The last line names draftloop's fastest K and rule, or says to leave speculation off.
    `generate` takes costs, rule and what was kept at each depth from here, and goes on choosing K itself.
    """
    from ..prompt_files.reading import read_prompts
    from ..speculative.rules import rule_for

    config = app.config.speculative
    rules = [rule_for(rule, config.temperature)]
    if rule == "auto" and config.temperature > 0:
        rules = ["rejection", "block"]
    prompts = None if prompts_file is None else read_prompts(prompts_file)[:limit]
    records = [] if prompts is not None else held_out_records(app)
    pair, stock = _load_pairs(app, adapter)
    from ..costs import fingerprint
    from ..speed import measure_speed
    from ..text import decoding_settings
    from .progress import Steps

    most = max(*lengths, config.max_draft_tokens)
    settings = replace(decoding_settings(config.model_copy(update={"rule": rules[0]})), num_draft_tokens=most)
    ids = _prompt_ids(app, pair, prompts, records, settings)[:limit]
    ways = 1 + len(lengths) + len(rules) * (len(lengths) + 1)
    runs, done = ways * len(ids) * (repeats + 1), count(1)
    with Steps() as steps:
        report = measure_speed(
            pair,
            stock,
            ids,
            settings,
            rules,
            lengths,
            lengths,
            repeats,
            lambda: steps.at("decoding", next(done), runs),
            partial(steps.at, "timing steps"),
        )
    try:
        _keep(app.data.costs, fingerprint(pair), report, whole=rule == "auto")
    except OSError as error:
        note(f"`generate` will not know of this: {error}")
    if as_json:
        print_json(
            {
                "status": "ok",
                **asdict(report),
                "adapter": pair.adapter,
                "pair": asdict(pair.identity),
                "sampler": asdict(settings.sampler),
                "prompts": len(ids),
                "max_tokens": settings.max_tokens,
                "repeats": repeats,
            }
        )
    else:
        what = f"{len(ids)} prompts, {settings.max_tokens} tokens at most, adapter {pair.adapter or 'none'}"
        _print(report, what)


def _load_pairs(app: App, adapter: str) -> tuple[Pair, Pair]:
    """As draftloop has the pair, and as mlx-lm does: the same one where nothing is done to it."""
    path = app.data.registry.resolve(adapter)
    same = "none" if path is None else str(path)  # the champion may become another one in between
    pair = app.load_pair(same)
    from ..on_cpu import is_adapted

    return pair, app.load_pair(same, as_stock=True) if is_adapted() else pair


def _prompt_ids(
    app: App, pair: Pair, prompts: list[Prompt] | None, records: list[Record], settings: Settings
) -> list[list[int]]:
    """The prompts to decode that leave room for an output and a round."""
    from ..live import usable_prompts
    from ..prompts import Reading
    from ..speculative.decoder import fits

    if prompts is not None:
        usable, skipped = usable_prompts(
            pair,
            prompts,
            settings,
            chat_template=app.config.speculative.chat_template,
            max_length=app.config.data.max_prompt_length,
            reading=Reading.of(app.config.speculative),
        )
        for line in skipped:
            note(f"skipped: {line}")
        return [ids for _, ids in usable]
    own = dict.fromkeys(one.prompt_tokens for one in records if one.pair.tokenizer == pair.identity.tokenizer)
    found = [list(ids) for ids in own if fits(pair, len(ids), settings) and max(ids) < pair.width]
    if not found:
        raise PromptError(f"no logged prompt leaves room for {settings.max_tokens} tokens; give --prompts-file")
    return found


def _keep(costs: KnownCosts, key: str, report: Report, *, whole: bool) -> None:
    """Remember; a run that did not compare the rules, as at temperature 0, leaves what is known of them."""
    from ..known_costs import Known

    known, advice = costs.of(key), report.advice
    if not whole or advice.rule is None:
        advice = replace(advice, rule=known.advice.rule if known is not None and known.advice is not None else None)
    experience = ({} if known is None else known.experience) | report.experience
    costs.keep(key, Known(report.costs, advice, experience))


def _print(report: Report, conditions: str) -> None:
    from .tables import print_table

    costs, advice = report.costs, report.advice
    click.echo(
        f"{conditions}; a draft step {1e3 * costs.t_draft:.2f} ms, a plain step {1e3 * costs.t_target[0]:.2f} ms"
    )
    print_table(
        ["", "rule", "K", "tokens/s", "±", "acceptance length", "x plain", "forecast"],
        [
            [
                row.way.by,
                row.way.rule or "",
                "auto" if row.way.num_draft_tokens is None else row.way.num_draft_tokens,
                f"{row.tokens_per_second:.1f}",
                f"{row.spread:.0%}",
                "" if row.length is None else f"{row.length:.2f}",
                f"{row.speed_up:.2f}",
                "" if row.forecast is None else f"{row.forecast:.2f}",
            ]
            for row in report.rows
        ],
    )
    if advice.num_draft_tokens == 0:
        click.echo("leave speculation off on this machine: no draft length is faster than the target alone")
    else:
        rule = f", rule {advice.rule}" if advice.rule else ""
        click.echo(f"K = {advice.num_draft_tokens}{rule}, on this machine: {advice.speed_up:.2f} x plain")
