"""`collect-data`: generates from prompts and logs records."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import Interrupted, PromptError
from ..runtime.memory import forget_peak, peak_gigabytes
from .app import App, note, print_json
from .options import PATH, adapter_option, config_options, decoding_options, json_option, model_options
from .output import Doing
from .prompt_input import counted, say_skipped

if TYPE_CHECKING:
    from ..collection.collect import CollectReport
    from ..data.records import Record
    from .progress import ProgressBar


@click.command("collect-data", cls=Doing)
@click.option("-p", "--prompt", "prompts", multiple=True, metavar="TEXT", help="A prompt; repeatable.")
@click.option(
    "--prompts-file",
    "prompts_files",
    multiple=True,
    type=PATH,
    help="File of prompts: one a line (.txt), or prompts, chat messages, ShareGPT, alpaca (.jsonl, .ndjson, .json); "
    "repeatable.",
)
@click.option(
    "--from",
    "logs",
    multiple=True,
    type=PATH,
    metavar="LOG",
    help="Log of a client: the logs.db of simonw/llm, or OpenAI-style requests, one JSON object a line; repeatable.",
)
@click.option("--strict", is_flag=True, help="Refuse a file with a line that is no prompt; do not skip the line.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many new generations.")
@click.option("--source", default="default", show_default=True, metavar="NAME", help="Name of the prompts' source.")
@click.option("--live", is_flag=True, help="Decode speculatively, one prompt at a time: slower, but needs less memory.")
@click.option("--fresh", is_flag=True, help="Collect prompts again that were collected under these conditions.")
@adapter_option("Adapter of the draft while collecting.")
@config_options("data", "teacher_top_k")
@decoding_options
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
    """Generate from prompts and log rejections.

    The target generates in batches; speculative rounds are simulated on its outputs. Every finished generation is one
    line of <data-dir>/failures/failures.jsonl. Run it again with the same prompts to go on where it stopped.
    """
    from ..prompts.files import PromptFile
    from ..prompts.prompt import Prompt, Reading

    files = [*map(PromptFile, prompts_files), *(PromptFile(path, is_log=True) for path in logs)]
    if not (prompts or files):
        raise PromptError("no prompts: give -p TEXT, --prompts-file FILE or --from LOG")
    if not source.strip() or not source.isprintable():
        raise click.BadParameter(f"{source!r}: a name is expected", param_hint="--source")

    for text in prompts:
        if _is_file(text):
            raise click.UsageError(f"-p takes the text of a prompt, and {text} is a file: --prompts-file reads it")
    survey = counted(files, strict, others=len(prompts))

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
        from ..prompts.chat_template import has_place_for

        for what, name, left_out in (
            ("role", "roles", survey.with_turns),
            ("tools", "tools", survey.with_tools),
            ("tool_calls", "calls of tools", survey.with_calls),
        ):
            if left_out and not has_place_for(pair.tokenizer, what):
                note(f"the target's chat template has no place for {name}: it leaves out those of {left_out:,} prompts")
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
    count = len(prompts) + survey.prompts
    total = min(count, limit or count)
    with stop_request("stopping: what is logged is kept") as stop, ProgressBar("collecting", total) as progress:
        display = _Display(app, progress, total * decoding.max_tokens)
        report = collect_data(
            pair,
            chain(map(Prompt, prompts), *files),
            app.data.log,
            settings,
            stop,
            display.record,
            app.data.blobs,
            display.tokens,
        )
    if target and (report.generations or report.skipped[ALREADY_COLLECTED]):
        app.data.names.keep_template(target)
    say_skipped(report.skipped_prompts)
    values = (
        report.to_json()
        | survey.to_json()
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


def _is_file(text: str) -> bool:
    """Whether it is a file's path; a word may be a file's name by chance."""
    try:
        path = Path(text)
        return (len(path.parts) > 1 or bool(path.suffix)) and path.is_file()
    except (OSError, ValueError):  # too long for a name, or no name at all
        return False


class _Display:
    """Shows how far collecting is. It moves with every token, because generations finish many at a time.

    Args:
        app: says where it works, once there is something to work on.
        progress: the bar, in generations.
        most: tokens of all generations, if each is as long as it may be.
    """

    def __init__(self, app: App, progress: ProgressBar, most: int) -> None:
        self._app, self._progress, self._most = app, progress, most
        self._generated, self._length = 0, ""

    def tokens(self, count: int) -> None:
        """`count` more tokens were generated."""
        self._app.say_where()
        self._generated += count
        self._progress.move(self._generated / self._most, self._detail())

    def record(self, so_far: CollectReport, _record: Record) -> None:
        """One more generation is logged."""
        self._app.say_where()
        self._length = f"acceptance length {so_far.acceptance.acceptance_length:.2f}, "
        self._progress.set(so_far.generations, self._detail())

    def _detail(self) -> str:
        speed = self._generated / max(self._progress.seconds, 1e-9)
        return f"{self._length}{speed:,.0f} tokens/s, {self._generated:,} tokens"


def _print(values: dict[str, Any]) -> None:
    from .tables import print_pairs, sampler_in_words

    arguments = values["chat_template_args"]
    given = f", template arguments {json.dumps(arguments)}" if arguments else ""
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
            f"{sampler_in_words(values['sampler'])}, adapter {values['adapter'] or 'none'}{given}",
            "log": values["log"],
        }
    )
