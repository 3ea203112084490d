"""`benchmark acceptance`: how much more the target accepts with an adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import PromptError
from ..memory import forget_peak, peak_gigabytes
from ..rule import SAMPLING
from .app import App, Command, adapter_option, json_option, model_options, note, print_json, sampler_options

if TYPE_CHECKING:
    from ..benchmark import Report
    from ..live import LiveRow
    from ..prompts import Prompt
    from ..records import Record
    from ..store.log import FailureLog


@click.group()
def benchmark() -> None:
    """Measure a draft."""


def draft_lengths_option(default: str) -> Callable[[Command], Command]:
    """`--num-draft-tokens` for several K."""
    return click.option(
        "--num-draft-tokens",
        "lengths",
        default=default,
        show_default=True,
        callback=_draft_lengths,
        metavar="K,K,...",
        help="Draft lengths.",
    )


def rule_option(auto: str) -> Callable[[Command], Command]:
    """`--rule`, saying what `auto` measures."""
    return click.option(
        "--rule",
        type=click.Choice(["auto", "greedy", *SAMPLING]),
        default="auto",
        show_default=True,
        help=f"Acceptance rule; {auto}",
    )


def _draft_lengths(_context: click.Context, _parameter: click.Parameter, value: str) -> list[int]:
    try:
        lengths = sorted({int(part) for part in value.split(",")})
    except ValueError:
        raise click.BadParameter(f"{value!r}: whole numbers with commas between them are expected: 1,2,4,8") from None
    if lengths[0] < 1 or lengths[-1] > 64:
        raise click.BadParameter(f"{value!r}: every draft length lies between 1 and 64")
    return lengths


@benchmark.command()
@adapter_option("Adapter to compare with the bare draft.")
@click.option("--prompts-file", type=click.Path(path_type=Path), help="Prompts to generate from and measure on.")
@click.option("--limit", type=click.IntRange(min=1), help="Use so many prompts or logged generations.")
@draft_lengths_option("1,2,4,8")
@rule_option("auto: every one that fits the texts.")
@sampler_options
@click.option("--live", is_flag=True, help="Also decode the prompts for real at every K, and time it.")
@model_options
@json_option
@click.pass_obj
def acceptance(
    app: App,
    adapter: str,
    prompts_file: Path | None,
    limit: int | None,
    lengths: list[int],
    rule: str,
    live: bool,
    as_json: bool,
) -> None:
    """Acceptance for every draft length from one pass over texts, with and without the adapter, paired.

    The texts are the logged held-out generations, or with --prompts-file what the target makes of those prompts; the
    sampler's flags go with --prompts-file alone.
    """
    from ..prompt_files.reading import read_prompts

    prompts = None if prompts_file is None else read_prompts(prompts_file)[:limit]
    records = [] if prompts is not None else _held_out(app, limit)
    report, live_rows = _measure(app, adapter, prompts, records, lengths, rule, live)
    if as_json:
        live_values = [asdict(row) for row in live_rows]
        print_json({"status": "ok", **report.to_json(), "live": live_values, "peak_memory_gb": peak_gigabytes()})
    else:
        _print(report, live_rows)


def _held_out(app: App, limit: int | None) -> list[Record]:
    """Held-out generations; sampling flags would say what these are not."""
    given = app.flags.keys() & {
        f"speculative.{key}" for key in ("temperature", "top_p", "min_p", "top_k", "max_tokens")
    }
    if given:
        raise click.UsageError("logged texts keep the sampler they were made with; sampling flags need --prompts-file")
    return held_out_records(app)[:limit]


def held_out_records(app: App) -> list[Record]:
    """The held-out generations of the log; damage is told. Raises PromptError: there is none."""
    log = app.data.log
    found = list(log.records({"heldout"}))
    for damage in log.damage:
        note(f"damaged: {log.path}, line {damage.line_number}: {damage.reason}")
    note_near_two_splits(log)
    if not found:
        raise PromptError(
            f"no held-out generations in {log.path}: the first ten prompts all train, of the others one in five is "
            "held out; collect more, or give --prompts-file"
        )
    return found


def note_near_two_splits(log: FailureLog) -> None:
    """Say how many held-out generations were left out, where there are any."""
    if log.near_two_splits:
        note(f"left out: {log.near_two_splits} held-out generations whose prompts are near ones of another split")


def _measure(
    app: App,
    adapter: str,
    prompts: list[Prompt] | None,
    records: list[Record],
    lengths: list[int],
    rule: str,
    live: bool,
) -> tuple[Report, list[LiveRow]]:
    path = app.data.registry.resolve(adapter)
    speculative = app.config.speculative
    if prompts is not None:
        from ..speculative.rules import rule_for

        rule_for(rule, speculative.temperature)  # a mismatch is told before anything is generated
    forget_peak()
    pair = app.load_pair("none")
    from ..benchmark import compare, left_out, logged_samples, rules_that_fit, said
    from ..live import decode_live, samples_from_prompts
    from ..prompts import Reading
    from ..text import decoding_settings
    from .progress import Progress, Steps

    settings = decoding_settings(speculative.model_copy(update={"rule": "auto"}))
    chosen = None if path is None else (app.adapter_name(path), path)
    if prompts is None:
        samples = logged_samples(records, pair, app.data.log.groups().group_of)
        without = left_out(records, pair)
        if without:
            note(f"left out: {said(without)}")
    else:
        with Progress("generating", len(prompts)) as progress:
            samples, skipped = samples_from_prompts(
                pair,
                prompts,
                settings,
                chat_template=speculative.chat_template,
                max_prompt_length=app.config.data.max_prompt_length,
                reading=Reading.of(speculative),
                on_text=lambda _: progress.advance(1),
            )
        for line in skipped:
            note(f"skipped: {line}")
    with Steps() as steps:
        watch = partial(steps.at, "scoring")
        report = compare(pair, samples, rule, lengths, chosen, seed=speculative.seed, on_text=watch)
    if prompts is None:
        report = replace(report, conditions=report.conditions | {"left_out": dict(without)})
    if not live:
        return report, []
    rules = rules_that_fit(samples, rule)
    runs = len(rules) * len(lengths) * (1 if chosen is None else 2) * len(samples)
    with Progress("decoding", runs) as progress:
        return report, decode_live(pair, samples, rules, lengths, chosen, settings, lambda _: progress.advance(1))


def _print(report: Report, live: list[LiveRow]) -> None:
    from .tables import describe, interval, print_table

    conditions = report.conditions
    click.echo(
        f"{conditions['texts']} texts of {conditions['prompt_groups']} prompts, {conditions['tokens']:,} tokens; "
        f"intervals: {conditions['interval']}"
    )
    samplers = "; ".join(describe(sampler) for sampler in conditions["samplers"])
    pair = conditions["pair"]
    click.echo(
        f"target {pair['target'][:12]}, draft {pair['draft'][:12]}; {samplers}; bootstrap seed {conditions['seed']}; "
        f"peak memory {peak_gigabytes():.2f} GB"
    )
    print_table(
        ["adapter", "rule", "K", "accepted per position", "acceptance rate", "acceptance length", "95%"],
        [
            [
                row.adapter,
                row.rule,
                row.num_draft_tokens,
                row.acceptance_per_position,
                row.acceptance_rate,
                row.acceptance_length,
                interval(row.ci_low, row.ci_high),
            ]
            for row in report.results
        ],
    )
    if report.comparison:
        print_table(
            ["rule", "K", "gained length", "95%"],
            [
                [
                    change.rule,
                    change.num_draft_tokens,
                    change.delta_acceptance_length,
                    interval(change.ci_low, change.ci_high, signed=True),
                ]
                for change in report.comparison
            ],
            title="adapter minus bare draft, paired",
        )
    else:
        note("no adapter to compare with: `train` makes one, `--adapter` chooses one")
    if live:
        print_table(
            ["adapter", "rule", "K", "length, live", "length, estimated", "tokens/s", "target alone"],
            [
                [
                    row.adapter,
                    row.rule,
                    row.num_draft_tokens,
                    row.acceptance_length,
                    row.estimated_acceptance_length,
                    row.tokens_per_second,
                    row.plain_tokens_per_second,
                ]
                for row in live
            ],
            title="decoded for real; the estimate is of the very texts that were decoded",
        )
