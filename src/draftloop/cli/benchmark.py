"""`benchmark acceptance`: how much more the target accepts with an adapter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config import SAMPLING
from ..errors import DraftloopError, PromptError
from ..runtime.memory import forget_peak, peak_gigabytes
from .app import App, Command, adapter_option, json_option, model_options, note, print_json, sampler_options
from .prompt_input import prompts_file_option, prompts_of

if TYPE_CHECKING:
    from ..data.log import FailureLog
    from ..data.records import Record
    from ..evaluation.benchmark import AcceptanceReport
    from ..evaluation.held_out import HeldOut, LoggedGenerations
    from ..evaluation.live_decoding import LiveRow
    from ..models.pair import Pair
    from ..prompts.prompt import Prompt


@click.group()
def benchmark_group() -> None:
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


@benchmark_group.command()
@adapter_option(
    "Adapter to compare with the bare draft.", None, "champion; before the first promotion, the latest of this draft"
)
@prompts_file_option("Prompts to generate from and measure on.")
@click.option("--limit", type=click.IntRange(min=1), help="Use so many prompts or logged generations.")
@draft_lengths_option("1,2,4,8")
@rule_option("auto: every one that fits the texts.")
@sampler_options
@click.option("--live", is_flag=True, help="Also decode the prompts for real at every K, and time it.")
@model_options
@json_option
@click.pass_obj
def acceptance_command(
    app: App,
    adapter: str | None,
    prompts_file: Path | None,
    strict: bool,
    limit: int | None,
    lengths: list[int],
    rule: str,
    live: bool,
    as_json: bool,
) -> None:
    """Acceptance for every draft length from one pass over texts, with and without the adapter, paired.

    The texts are the logged held-out generations, or with --prompts-file what the target makes of those prompts; the
    sampler's flags go with --prompts-file alone. As long as nothing is held out, the other logged generations are
    measured, and marked: what an adapter was trained on flatters it.
    """
    prompts = None if prompts_file is None else prompts_of(prompts_file, limit, strict)
    if prompts is None:
        _check_flags(app)
        refuse_empty_log(app)
    report, live_rows, found = _measure(app, adapter, prompts, limit, lengths, rule, live)
    if as_json:
        live_values = [asdict(row) for row in live_rows]
        print_json({"status": "ok", **report.to_json(), "live": live_values, "peak_memory_gb": peak_gigabytes()})
    else:
        _print(report, live_rows, found)


def _check_flags(app: App) -> None:
    """Sampling flags would say of logged texts what these are not."""
    given = app.flags.keys() & {
        f"speculative.{key}" for key in ("temperature", "top_p", "min_p", "top_k", "max_tokens", "chat_template_args")
    }
    if given:
        raise click.UsageError("logged texts keep what they were made with; sampling flags need --prompts-file")


def refuse_empty_log(app: App) -> None:
    """Raise PromptError where nothing is logged at all, before models are loaded; damage is told."""
    from ..evaluation.held_out import check_logged

    try:
        check_logged(app.data.log)
    except PromptError:
        note_damage(app.data.log)
        raise


def logged_to_measure_on(app: App, why_not: Callable[[Record], str | None]) -> LoggedGenerations:
    """Logged generations, held-out ones where there are any; says what is damaged, left out, or not held out."""
    from ..evaluation.held_out import generations_to_measure

    log = app.data.log
    try:
        found = generations_to_measure(log, why_not)
    finally:
        note_damage(log)
    note_near_two_splits(found.near_two_splits)
    if all(record.split != "heldout" for record in found.records):
        note(
            "there is no held-out generation to measure on, so these are of prompts for training: the first ten "
            "prompts all train, of the others one in five is held out; collect more, or give --prompts-file"
        )
    return found


def note_damage(log: FailureLog) -> None:
    """Name the damaged lines of the latest reading."""
    for damage in log.damage:
        note(f"damaged: {log.path}, line {damage.line_number}: {damage.reason}")


def note_near_two_splits(count: int) -> None:
    """Say how many generations were left out, where there are any."""
    if count:
        note(f"left out: {count} generations whose prompts are near ones of another split")


def _measure(
    app: App,
    adapter: str | None,
    prompts: list[Prompt] | None,
    limit: int | None,
    lengths: list[int],
    rule: str,
    live: bool,
) -> tuple[AcceptanceReport, list[LiveRow], HeldOut]:
    path = app.data.registry.resolve(adapter or "champion")
    speculative = app.config.speculative
    if prompts is not None:
        from ..decoding.acceptance_rules import rule_for

        rule_for(rule, speculative.temperature)  # a mismatch is told before anything is generated
    forget_peak()
    pair = app.load_pair("none")
    from ..data.usable import describe_counts, why_unusable
    from ..decoding.generate import decoding_settings
    from ..evaluation.benchmark import compare_drafts, logged_samples, rules_that_fit
    from ..evaluation.held_out import MeasuredPrompt, check_held_out
    from ..evaluation.live_decoding import decode_live, samples_from_prompts
    from ..prompts.prompt import Reading
    from .progress import ProgressBar, Steps

    settings = decoding_settings(speculative.model_copy(update={"rule": "auto"}))
    latest = _latest_of(app, pair) if path is None and adapter is None else None
    path = path or latest
    chosen = None if path is None else (app.adapter_name(path), path)
    if prompts is None:
        logged = logged_to_measure_on(app, lambda record: why_unusable(record, pair.identity, pair.width))
        samples = logged_samples(logged.records, pair, app.data.log.groups().group_of)[:limit]
        if logged.left_out:
            note(f"left out: {describe_counts(logged.left_out)}")
    else:
        with ProgressBar("generating", len(prompts)) as progress:
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
    app.say_where()
    if latest is not None:
        note(f"nothing is promoted yet, so {latest.name} is compared, the latest; --adapter chooses another one")
    with Steps() as steps:
        watch = partial(steps.at, "scoring")
        report = compare_drafts(pair, samples, rule, lengths, chosen, seed=speculative.seed, on_text=watch)
    found = check_held_out((MeasuredPrompt(sample.group, sample.opening) for sample in samples), app.data.log, chosen)
    conditions = report.conditions | found.to_json()
    if prompts is None:
        conditions |= {"left_out": dict(logged.left_out)}
    else:
        conditions |= {"chat_template_args": speculative.chat_template_args}
    report = replace(report, conditions=conditions)
    if not live:
        return report, [], found
    rules = rules_that_fit(samples, rule)
    runs = len(rules) * len(lengths) * (1 if chosen is None else 2) * len(samples)
    with ProgressBar("decoding", runs) as progress:
        rows = decode_live(pair, samples, rules, lengths, chosen, settings, lambda _: progress.advance(1))
    return report, rows, found


def _latest_of(app: App, pair: Pair) -> Path | None:
    """The newest version that was made for this draft, as long as nothing was ever promoted."""
    registry = app.data.registry
    if registry.pointer().sequence:
        return None
    for name in reversed(registry.versions()):
        with suppress(DraftloopError):  # `adapters list` says what is wrong with it
            made_for = registry.manifest(name).pair
            if made_for is not None and made_for.draft == pair.identity.draft:
                return registry.root / name
    return None


def _print(report: AcceptanceReport, live: list[LiveRow], found: HeldOut) -> None:
    from .tables import interval, print_table, print_text, sampler_in_words

    conditions = report.conditions
    marked = f"\n{found.mark}" if found.mark else ""
    print_text(
        f"{conditions['texts']} texts of {conditions['prompt_groups']} prompts, {conditions['tokens']:,} tokens; "
        f"intervals: {conditions['interval']}"
    )
    samplers = "; ".join(sampler_in_words(sampler) for sampler in conditions["samplers"])
    pair = conditions["pair"]
    print_text(
        f"target {pair['target'][:12]}, draft {pair['draft'][:12]}; {samplers}; bootstrap seed {conditions['seed']}; "
        f"peak memory {peak_gigabytes():.2f} GB"
    )
    if found.sentence:
        print_text(found.sentence)
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
        title=found.mark,
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
            title=f"adapter minus bare draft, paired{marked}",
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
            title=f"decoded for real; the estimate is of the very texts that were decoded{marked}",
        )
