"""`benchmark acceptance`: measures how much more is accepted with an adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import DraftloopError, PromptError
from ..runtime.memory import forget_peak, peak_gigabytes
from .app import App, note, note_damage, print_json
from .break_even import note_where_it_does_not_pay
from .options import (
    adapter_option,
    draft_lengths_option,
    json_option,
    model_options,
    prompts_file_options,
    rule_option,
    sampler_options,
)
from .prompt_input import prompts_of

if TYPE_CHECKING:
    from ..data.log import FailureLog
    from ..data.records import Record
    from ..evaluation.benchmark import AcceptanceReport
    from ..evaluation.held_out import HeldOut, LoggedGenerations
    from ..evaluation.live_decoding import LiveRow
    from ..models.pair import Pair


@click.group()
def benchmark_group() -> None:
    """Measure a draft."""


@benchmark_group.command()
@adapter_option(
    "Adapter to compare with the bare draft.", None, "champion; before the first promotion, the latest of this draft"
)
@prompts_file_options("Prompts to generate from and measure on.")
@click.option("--limit", type=click.IntRange(min=1), help="Use at most this many prompts or logged generations.")
@draft_lengths_option("1,2,4,8")
@rule_option("every rule that fits the generations")
@sampler_options
@click.option("--live", is_flag=True, help="Also decode the prompts live at every K, and time it.")
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
    """Measure acceptance at every draft length.

    One pass of each model over an output gives the exact expected number of rounds for every K. The draft with and
    without the adapter is compared on the same outputs: the logged held-out generations, or with --prompts-file new
    generations from those prompts (only then the sampler's flags apply). As long as nothing is held out, the other
    logged generations are measured, and marked: an adapter looks too good on generations that it was trained on.
    """
    from ..evaluation.held_out import MeasuredPrompt, check_held_out
    from .progress import ProgressBar, Steps

    # 1. Find mistakes before anything is loaded.
    speculative = app.config.speculative
    prompts = None if prompts_file is None else prompts_of(prompts_file, limit, strict)
    if prompts is None:
        names = ("temperature", "top_p", "min_p", "top_k", "max_tokens", "chat_template_args")
        if app.flags.keys() & {f"speculative.{name}" for name in names}:
            raise click.UsageError("logged generations keep their sampler; the sampler's flags need --prompts-file")
        refuse_empty_log(app)
    path = app.data.registry.resolve(adapter or "champion")
    if prompts is not None:
        from ..decoding.acceptance_rules import rule_for

        rule_for(rule, speculative.temperature)
    # 2. Load the pair, and choose the adapter.
    forget_peak()
    pair = app.load_pair("none")
    from ..data.usable import describe_counts, why_not_measured
    from ..decoding.generate import decoding_settings
    from ..evaluation.benchmark import compare, logged_samples, rules_that_fit
    from ..evaluation.live_decoding import decode_live, samples_from_prompts
    from ..prompts.prompt import Reading

    settings = decoding_settings(speculative.model_copy(update={"rule": "auto"}))
    latest = _latest_of(app, pair) if path is None and adapter is None else None
    path = path or latest
    chosen = None if path is None else (app.data.registry.name_of(path), path)
    # 3. Read the logged generations, or generate from the prompts.
    if prompts is None:
        logged = logged_to_measure_on(app, lambda record: why_not_measured(record, pair.identity, pair.width))
        samples = logged_samples(logged.records, pair, app.data.log.groups().group_of)[:limit]
        if logged.left_out:
            note(f"left out: {describe_counts(logged.left_out)}")
        conditions = {"left_out": dict(logged.left_out)}
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
        conditions = {"chat_template_args": speculative.chat_template_args}
    # 4. Score both drafts, and decode live if asked to.
    app.say_where()
    if latest is not None:
        note(f"nothing is promoted yet, so {latest.name} is compared, the latest; --adapter chooses another one")
    with Steps() as steps:
        watch = partial(steps.at, "scoring")
        report = compare(pair, samples, rule, lengths, chosen, seed=speculative.seed, on_text=watch)
    held_out = check_held_out(
        (MeasuredPrompt(sample.group, sample.opening) for sample in samples), app.data.log, chosen
    )
    report = replace(report, conditions=report.conditions | held_out.to_json() | conditions)
    rows: list[LiveRow] = []
    if live:
        with Steps() as steps:
            watch = partial(steps.at, "decoding")
            rows = decode_live(pair, samples, rules_that_fit(samples, rule), lengths, chosen, settings, watch)
    # 5. Print.
    if as_json:
        live_rows = [asdict(row) for row in rows]
        print_json({"status": "ok", **report.to_json(), "live": live_rows, "peak_memory_gb": peak_gigabytes()})
    else:
        _print(report, rows, held_out)
        note_where_it_does_not_pay(
            app, pair.identity.target, pair.identity.draft, report.results[-1].acceptance_per_position
        )


def refuse_empty_log(app: App) -> None:
    """Raise PromptError if nothing is logged at all, before models are loaded; damage is named."""
    from ..evaluation.held_out import check_logged

    try:
        check_logged(app.data.log)
    except PromptError:
        note_damaged_lines(app.data.log)
        raise


def logged_to_measure_on(app: App, why_not: Callable[[Record], str | None]) -> LoggedGenerations:
    """Logged generations, held-out ones if there are any; says what is damaged, left out, or not held out."""
    from ..evaluation.held_out import generations_to_measure

    log = app.data.log
    try:
        logged = generations_to_measure(log, why_not)
    finally:
        note_damaged_lines(log)
    note_near_two_splits(logged.near_two_splits)
    if all(record.split != "heldout" for record in logged.records):
        note(
            "there is no held-out generation yet, so generations for training are measured: the first ten prompts all "
            "train, of the others one in five is held out; collect more, or give --prompts-file"
        )
    return logged


def note_damaged_lines(log: FailureLog) -> None:
    """Name the damaged lines that the latest reading of the log met."""
    note_damage(f"{log.path}, line {damage.line_number}: {damage.reason}" for damage in log.damage)


def note_near_two_splits(count: int) -> None:
    """Say how many generations are left out for prompts near those of another split, if any are."""
    if count:
        note(f"left out: {count} generations whose prompts are near prompts of another split")


def _latest_of(app: App, pair: Pair) -> Path | None:
    """The newest version made for this draft, as long as nothing was ever promoted."""
    registry = app.data.registry
    if registry.pointer().sequence:
        return None
    for name in reversed(registry.versions()):
        with suppress(DraftloopError):  # `adapters list` says what is wrong with it
            made_for = registry.manifest(name).pair
            if made_for is not None and made_for.draft == pair.identity.draft:
                return registry.root / name
    return None


def print_conditions(conditions: Mapping[str, Any], what: str, *more: str) -> None:
    """Two lines: what was measured, and with which models and samplers."""
    from .tables import print_text, sampler_in_words

    print_text(
        f"{conditions['texts']} {what} of {conditions['prompt_groups']} prompts, {conditions['tokens']:,} tokens; "
        f"intervals: {conditions['interval']}, seed {conditions['seed']}"
    )
    samplers = [sampler_in_words(sampler) for sampler in conditions["samplers"]]
    pair = conditions["pair"]
    print_text("; ".join([f"target {pair['target'][:12]}, draft {pair['draft'][:12]}", *samplers, *more]))


def _print(report: AcceptanceReport, live: list[LiveRow], held_out: HeldOut) -> None:
    from .tables import ACCEPTANCE, GAIN, print_records, print_text

    marked = f"\n{held_out.mark}" if held_out.mark else ""
    print_conditions(report.conditions, "generations", f"peak memory {peak_gigabytes():.2f} GB")
    if held_out.sentence:
        print_text(held_out.sentence)
    which = {"rule": "rule", "K": "num_draft_tokens"}
    print_records(report.results, {"adapter": "adapter", **which, **ACCEPTANCE}, title=held_out.mark)
    if report.comparison:
        print_records(report.comparison, {**which, **GAIN}, title=f"adapter minus bare draft, paired{marked}")
    else:
        note("no adapter to compare with: `train` makes one, `--adapter` chooses one")
    if live:
        print_records(
            live,
            {
                "adapter": "adapter",
                **which,
                "acceptance length": "acceptance_length",
                "estimated": "estimated_acceptance_length",
                "tokens/s": lambda row: f"{row.tokens_per_second:.1f}",
                "at K = 0": lambda row: f"{row.plain_tokens_per_second:.1f}",
                "speed-up": lambda row: f"{row.tokens_per_second / row.plain_tokens_per_second:.2f}",
            },
            title=f"decoded live, and the estimate for these same outputs{marked}",
        )
