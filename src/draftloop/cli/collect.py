"""`collect-data`: prompts in, records out."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import Interrupted, PromptError
from ..runtime.memory import forget_peak, peak_gigabytes
from .app import App, adapter_option, config_option, json_option, model_options, note, print_json, sampling_options
from .output import Doing
from .prompt_input import counted, say_skipped

if TYPE_CHECKING:
    from ..collection.collect import CollectReport
    from ..data.records import Record
    from ..prompts.files import FileSurvey
    from .progress import ProgressBar


@click.command("collect-data", cls=Doing)
@click.option("-p", "--prompt", "prompts", multiple=True, metavar="TEXT", help="A prompt; may be given several times.")
@click.option(
    "--prompts-file",
    "prompts_files",
    multiple=True,
    type=click.Path(readable=False, path_type=Path),
    help="A prompt a line (.txt), or prompts, chat messages, ShareGPT, alpaca (.jsonl, .ndjson, .json); repeatable.",
)
@click.option(
    "--from",
    "logs",
    multiple=True,
    type=click.Path(readable=False, path_type=Path),
    metavar="LOG",
    help="What clients logged: the logs.db of simonw/llm, or OpenAI-style requests, one JSON object a line.",
)
@click.option("--strict", is_flag=True, help="Refuse files with a line that is no prompt, instead of skipping it.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many new generations.")
@click.option("--source", default="default", show_default=True, metavar="NAME", help="Where the prompts come from.")
@click.option("--live", is_flag=True, help="Run draft and target in turn, a prompt at a time: slower, in least memory.")
@click.option("--fresh", is_flag=True, help="Collect again what was collected under the same conditions.")
@adapter_option("Adapter of the draft while collecting.")
@config_option("--teacher-top-k", key="data.teacher_top_k", type=int)
@sampling_options
@model_options
@json_option
@click.pass_obj
def collect_data_command(
    app: App,
    prompts: tuple[str, ...],
    prompts_files: tuple[Path, ...],
    logs: tuple[Path, ...],
    strict: bool,
    limit: int | None,
    source: str,
    live: bool,
    fresh: bool,
    adapter: str,
    as_json: bool,
) -> int:
    """Have the target answer prompts, many at a time; log what the draft would have proposed and the target rejected.

    Every finished generation is one line of <data-dir>/failures/failures.jsonl. Run again with the same prompts, it
    goes on where it stopped.
    """
    from ..prompts.files import PromptFile
    from ..prompts.prompt import Prompt, Reading

    files = [*map(PromptFile, prompts_files), *(PromptFile(path, is_log=True) for path in logs)]
    if not (prompts or files):
        raise PromptError("no prompts: give -p TEXT, --prompts-file FILE or --from LOG")
    if not source.strip() or not source.isprintable():
        raise click.BadParameter(f"{source!r}: a name is expected", param_hint="--source")

    found = counted(files, strict, others=len(prompts))

    from ..collection.collect import ALREADY_COLLECTED, CollectSettings, collect_data
    from ..decoding.generate import decoding_settings
    from ..runtime.signals import stop_request
    from .progress import ProgressBar

    config = app.config
    decoding = replace(decoding_settings(config.speculative), teacher_top_k=config.data.teacher_top_k)
    forget_peak()
    pair = app.load_pair(adapter)
    target = pair.files[0] if pair.files and config.speculative.chat_template else None
    changed = app.data.names.changed_template(target) if target else None
    if changed:
        note(changed)
    if config.speculative.chat_template:
        _note_what_is_not_seen(pair.tokenizer, found)
    settings = CollectSettings(
        decoding=decoding,
        source=source,
        chat_template=config.speculative.chat_template,
        max_prompt_length=config.data.max_prompt_length,
        reading=Reading.of(config.speculative),
        fresh=fresh,
        limit=limit,
        live=live,
    )
    count = len(prompts) + found.prompts
    total = min(count, limit or count)
    with stop_request("stopping: what is logged is kept") as stop, ProgressBar("collecting", total) as progress:
        shown = _Shown(app, progress, total * decoding.max_tokens)
        report = collect_data(
            pair,
            chain(map(Prompt, prompts), *files),
            app.data.log,
            settings,
            stop,
            shown.record,
            app.data.blobs,
            shown.tokens,
        )
    if target and (report.generations or report.skipped[ALREADY_COLLECTED]):
        app.data.names.keep_template(target)
    say_skipped(report.skipped_prompts)
    values = (
        report.to_json()
        | found.to_json()
        | {
            "chat_template_changed": changed,
            "log": str(app.data.log.path),
            "adapter": pair.adapter,
            "rule": decoding.rule,
            "num_draft_tokens": decoding.num_draft_tokens,
            "sampler": asdict(decoding.sampler),
            "chat_template_args": config.speculative.chat_template_args,
            "peak_memory_gb": peak_gigabytes(),
        }
    )
    if as_json:
        print_json({"status": "interrupted" if report.interrupted else "ok", **values})
    else:
        _print(values)
    if not report.interrupted:
        return 0
    note("stopped: everything logged so far is kept; the same command goes on from here")
    return Interrupted.exit_code


def _given(template_args: dict[str, Any]) -> str:
    return f", template arguments {json.dumps(template_args)}" if template_args else ""


def _note_what_is_not_seen(tokenizer: Any, found: FileSurvey) -> None:
    """Say what of the prompts the chat template leaves out, and of how many."""
    from ..prompts.chat_template import has_place_for

    for what, name, count in (
        ("role", "roles", found.with_turns),
        ("tools", "tools", found.with_tools),
        ("tool_calls", "calls of tools", found.with_calls),
    ):
        if count and not has_place_for(tokenizer, what):
            note(f"the target's chat template has no place for {name}: it does not see those of {count:,} prompts")


class _Shown:
    """What the bar shows: it moves with every token, for finished generations come many at a time.

    Args:
        app: says where it works, once there is something to work on.
        progress: the bar, in generations.
        most: tokens of all of them, if each is as long as it may be.
    """

    def __init__(self, app: App, progress: ProgressBar, most: int) -> None:
        self._app, self._progress, self._most = app, progress, most
        self._written, self._length = 0, ""

    def tokens(self, count: int) -> None:
        """So many more were written."""
        self._app.say_where()
        self._written += count
        self._progress.move(self._written / self._most, self._detail())

    def record(self, so_far: CollectReport, _record: Record) -> None:
        """One more generation is logged."""
        self._app.say_where()
        self._length = f"acceptance length {so_far.acceptance.acceptance_length:.2f}, "
        self._progress.set(so_far.generations, self._detail())

    def _detail(self) -> str:
        speed = self._written / max(self._progress.seconds, 1e-9)
        return f"{self._length}{speed:,.0f} tokens/s, {self._written:,} tokens"


def _print(values: dict[str, Any]) -> None:
    from .tables import print_pairs, sampler_in_words

    print_pairs(
        {
            "prompts": values["prompts"],
            "generations": values["generations"],
            "tokens": values["tokens"],
            "acceptance rate": values["acceptance_rate"],
            "acceptance length": values["acceptance_length"],
            "failures": values["failures"],
            "skipped": ", ".join(f"{n} {why}" for why, n in values["skipped"].items()) or "none",
            "tokens/s": values["tokens_per_second"],
            "peak memory": f"{values['peak_memory_gb']:.2f} GB",
            "conditions": f"rule {values['rule']}, K = {values['num_draft_tokens']}, "
            f"{sampler_in_words(values['sampler'])}, adapter {values['adapter'] or 'none'}"
            f"{_given(values['chat_template_args'])}",
            "log": values["log"],
        }
    )
