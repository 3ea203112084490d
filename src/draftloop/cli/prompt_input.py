"""Files of prompts as a command takes them: what was converted or skipped is said on stderr, all of it by its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import PromptError
from .app import Command, config_option, note

if TYPE_CHECKING:
    from ..prompts.files import FileSurvey, PromptFile
    from ..prompts.prompt import Prompt

IN_FULL = 20
_PLACED = re.compile(r"(?P<file>.*?), (?P<kind>line|item|answer) (?P<place>\w+)[: ]")


def prompts_file_option(help_text: str) -> Callable[[Command], Command]:
    """`--prompts-file` and how it is read, for a command that measures on prompts."""

    def decorate(command: Command) -> Command:
        strict = "Refuse a file with a line that is no prompt, instead of skipping it."
        key = "speculative.chat_template_args"
        command = config_option("--chat-template-args", key=key, metavar="JSON")(command)
        command = click.option("--strict", is_flag=True, help=strict)(command)
        return click.option("--prompts-file", type=click.Path(readable=False, path_type=Path), help=help_text)(command)

    return decorate


def prompts_of(path: Path, limit: int | None, strict: bool) -> list[Prompt]:
    """The first prompts of a file, once the rest of it is told of. Raises PromptError: it has none."""
    from ..prompts.files import PromptFile
    from ..prompts.prompt import Prompt

    file = PromptFile(path)
    found = counted([file], strict)
    say_skipped([f"{one.where}: {one.why.reason}, {one.why.detail}" for one in found.skipped])
    return list(islice((one for one in file if isinstance(one, Prompt)), limit))


def counted(files: list[PromptFile], strict: bool, others: int = 0) -> FileSurvey:
    """What is in files of prompts; what was converted is told. Raises PromptError: nothing, and there are no others."""
    from ..prompts.files import survey_files

    found = survey_files(files, strict=strict)
    if not others and not found.prompts:
        first = found.skipped[0]
        raise PromptError(f"none of {len(found.skipped):,} prompts is usable: {first.where}: {first.why.detail}")
    for line in found.said():
        note(line)
    return found


def say_skipped(skipped: list[str]) -> None:
    """Name each: lines of `CollectReport.skipped_prompts`."""
    for line in skipped[:IN_FULL]:
        note(f"skipped: {line}")
    for line in grouped(skipped[IN_FULL:]):
        note(f"skipped too: {line}")


def grouped(skipped: Iterable[str]) -> Iterator[str]:
    """By file, in order; what stands in none by itself."""
    places: dict[tuple[str, str], list[str]] = {}
    for line in skipped:
        found = _PLACED.match(line)
        if found is None:
            yield line
        else:
            places.setdefault((found["file"], found["kind"]), []).append(found["place"])
    for (file, kind), of_file in places.items():
        yield f"{file}, {kind}s {', '.join(of_file)}"
