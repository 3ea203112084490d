"""`benchmark speed`: measures tokens/s of a pair on this machine for every way of decoding, and the best K."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .app import App, note, print_json
from .benchmark import logged_to_measure_on, refuse_empty_log
from .options import (
    adapter_option,
    draft_lengths_option,
    json_option,
    model_options,
    prompts_file_options,
    rule_option,
    sampler_options,
)
from .output import Doing
from .prompt_input import prompts_of

if TYPE_CHECKING:
    from ..data.records import Record
    from ..decoding.decoder import Settings
    from ..evaluation.held_out import HeldOut
    from ..evaluation.latency_profiles import LatencyProfiles
    from ..evaluation.throughput import SpeedReport
    from ..models.pair import Pair
    from ..prompts.prompt import Prompt


@click.command(cls=Doing)
@adapter_option("Adapter of the draft.")
@prompts_file_options("Prompts to decode; by default held-out ones.")
@click.option("--limit", type=click.IntRange(min=1), default=8, show_default=True, help="Prompts to decode.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Timed passes over them.")
@draft_lengths_option("1,2,3,4,6,8")
@rule_option("greedy at temperature 0, rejection and block above")
@sampler_options
@model_options
@json_option
@click.pass_obj
def speed_command(
    app: App,
    adapter: str,
    prompts_file: Path | None,
    strict: bool,
    limit: int,
    repeats: int,
    lengths: list[int],
    rule: str,
    as_json: bool,
) -> None:
    """Measure tokens/s, and find the fastest K.

    Decodes live in every way: by mlx-lm and by draftloop, with the target alone (K = 0) and with each K and rule. All
    take turns on the same prompts: 8 held-out ones, three times after a warm-up pass. As long as nothing is held out,
    other logged prompts are taken, and marked: an adapter looks too good on prompts that it was trained on. ± is the
    spread of tokens/s over the passes. "over K = 0" is what speculation gains, over the same decoder without it; "over
    mlx-lm" is what draftloop's decoder gains over mlx-lm's at the same K. The last line names draftloop's fastest K and
    rule, or says to leave speculation off. `generate` uses the latencies, the rule and the acceptance at each depth
    from here, and still chooses K itself.
    """
    from ..decoding.acceptance_rules import rule_for

    config = app.config.speculative
    rules = [rule_for(rule, config.temperature)]
    if rule == "auto" and config.temperature > 0:
        rules = ["rejection", "block"]
    prompts = None if prompts_file is None else prompts_of(prompts_file, limit, strict)
    if prompts is None:
        refuse_empty_log(app)
    path = app.data.registry.resolve(adapter)
    pair = app.load_pair("none" if path is None else str(path))  # the champion may move in between
    from ..decoding.generate import decoding_settings
    from ..evaluation.held_out import MeasuredPrompt, check_held_out
    from ..evaluation.latency import machine_fingerprint
    from ..evaluation.throughput import measure_speed
    from .progress import Steps

    most = max(*lengths, config.max_draft_tokens)
    settings = replace(decoding_settings(config.model_copy(update={"rule": rules[0]})), num_draft_tokens=most)
    to_decode = _usable(app, pair, prompts, settings)[:limit]
    prompt_tokens = [tokens for tokens, _ in to_decode]
    held_out = check_held_out(
        (MeasuredPrompt(str(number), opening) for number, (_, opening) in enumerate(to_decode)),
        app.data.log,
        None if path is None else (app.data.registry.name_of(path), path),
    )
    app.say_where()
    ways = 2 + len(lengths) + len(rules) * (len(lengths) + 1)  # two with the target alone
    runs, done = ways * len(to_decode) * (repeats + 1), count(1)
    with Steps() as steps:
        report = measure_speed(
            pair,
            prompt_tokens,
            settings,
            rules,
            lengths,
            lengths,
            repeats,
            lambda: steps.at("decoding", next(done), runs),
            partial(steps.at, "timing steps"),
        )
    try:
        key = machine_fingerprint(pair, greedy=config.temperature == 0)
        if not _keep(app.data.costs, key, report, whole=rule == "auto"):
            note(f"`generate` cannot use this: there is no {app.data_dir} to keep it in; `collect-data` makes it")
    except OSError as error:
        note(f"`generate` cannot use this: {error}")
    if as_json:
        print_json(
            {
                "status": "ok",
                **asdict(report),
                "adapter": pair.adapter,
                "pair": asdict(pair.identity),
                "sampler": asdict(settings.sampler),
                "prompts": len(to_decode),
                **held_out.to_json(),
                "max_tokens": settings.max_tokens,
                "repeats": repeats,
            }
        )
    else:
        what = f"{len(to_decode)} prompts, {settings.max_tokens} tokens at most, adapter {pair.adapter or 'none'}"
        _print(report, what, held_out)


def _usable(app: App, pair: Pair, prompts: list[Prompt] | None, settings: Settings) -> list[tuple[list[int], str]]:
    """The prompts that leave room for an output and a round: their tokens, and the text that decides their group."""
    from ..data.prompt_groups import opening
    from ..data.usable import FOREIGN_ID, NO_PROMPT
    from ..decoding.decoder import fits
    from ..evaluation.live_decoding import usable_prompts
    from ..prompts.prompt import Reading

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
        return [(tokens, opening(prompt.text, prompt.messages)) for prompt, tokens in usable]

    def why_not(record: Record) -> str | None:
        if record.pair.tokenizer != pair.identity.tokenizer:
            return "another tokenizer"
        if not fits(pair, len(record.prompt_tokens), settings):
            return f"no room for {settings.max_tokens} tokens behind its prompt"
        if not record.prompt_tokens:
            return NO_PROMPT
        return FOREIGN_ID if max(record.prompt_tokens) >= pair.width else None

    own = {record.prompt_tokens: record.opening for record in logged_to_measure_on(app, why_not).records}
    return [(list(tokens), text) for tokens, text in own.items()]


def _keep(costs: LatencyProfiles, key: str, report: SpeedReport, *, whole: bool) -> bool:
    """Keep the latency profile, if there is a place for it; the known rule stays where rules were not compared."""
    from ..evaluation.latency_profiles import StoredProfile

    known, advice = costs.of(key), report.advice
    if not whole or advice.rule is None:
        advice = replace(advice, rule=known.advice.rule if known is not None and known.advice is not None else None)
    experience = ({} if known is None else known.experience) | report.experience
    return costs.keep(key, StoredProfile(report.costs, advice, experience))


def _print(report: SpeedReport, conditions: str, held_out: HeldOut) -> None:
    from ..evaluation.break_even import break_even
    from .tables import print_records, print_text

    costs, advice = report.costs, report.advice
    print_text(
        f"{conditions}; a draft step {1e3 * costs.t_draft:.2f} ms, a target step {1e3 * costs.t_target[0]:.2f} ms"
    )
    if held_out.sentence:
        print_text(held_out.sentence)
    print_records(
        report.rows,
        {
            "": lambda row: row.way.by,
            "rule": lambda row: row.way.rule or "",
            "K": lambda row: "auto" if row.way.num_draft_tokens is None else row.way.num_draft_tokens,
            "tokens/s": lambda row: f"{row.tokens_per_second:.1f}",
            "±": lambda row: "" if row.spread is None else f"{row.spread:.0%}",
            "acceptance length": lambda row: "" if row.length is None else f"{row.length:.2f}",
            "over K = 0": lambda row: f"{row.speed_up:.2f}",
            "forecast": lambda row: "" if row.forecast is None else f"{row.forecast:.2f}",
            "over mlx-lm": lambda row: "" if row.over_stock is None else f"{row.over_stock:.2f}",
        },
        title=held_out.mark,
    )
    if advice.num_draft_tokens == 0:
        print_text("leave speculation off on this machine: no draft length is faster than K = 0, the target alone")
        needed = break_even(0.0, costs).needed
        print_text(
            "it would not be faster if everything was accepted: take a smaller draft, or a larger target"
            if needed is None
            else f"it would take about {needed:.2f} accepted per position; see `benchmark acceptance` for what there is"
        )
    else:
        fastest = f"K = {advice.num_draft_tokens}" + (f", rule {advice.rule}" if advice.rule else "")
        print_text(f"fastest on this machine: {fastest}, {advice.speed_up:.2f} times the speed of K = 0")
