"""Files of prompts as a command reads them: what was converted or skipped is said on stderr, with its place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PromptError
from .app import note

if TYPE_CHECKING:
    from ..prompts.files import FileSurvey, PromptFile
    from ..prompts.prompt import Prompt

IN_FULL = 20
_PLACED = re.compile(r"(?P<file>.*?), (?P<kind>line|item|answer) (?P<place>\w+)[: ]")


def prompts_of(path: Path, limit: int | None, strict: bool) -> list[Prompt]:
    """The first prompts of a file; what is skipped anywhere in it is said. Raises PromptError: it has none."""
    from ..prompts.files import PromptFile
    from ..prompts.prompt import Prompt

    file = PromptFile(path)
    found = counted([file], strict)
    say_skipped([f"{skipped.where}: {skipped.why.reason}, {skipped.why.detail}" for skipped in found.skipped])
    return list(islice((entry for entry in file if isinstance(entry, Prompt)), limit))


def counted(files: list[PromptFile], strict: bool, others: int = 0) -> FileSurvey:
    """Count the prompts in files; says what was converted. Raises PromptError: there are none, and no `others`."""
    from ..prompts.files import survey_files

    found = survey_files(files, strict=strict)
    if not others and not found.prompts:
        first = found.skipped[0]
        raise PromptError(f"none of {len(found.skipped):,} prompts is usable: {first.where}: {first.why.detail}")
    for line in found.said():
        note(line)
    return found


def say_skipped(skipped: list[str]) -> None:
    """Name each skipped prompt: the first IN_FULL with the reason, the others by their places alone."""
    for line in skipped[:IN_FULL]:
        note(f"skipped: {line}")
    for line in _places(skipped[IN_FULL:]):
        note(f"skipped too: {line}")


def _places(skipped: Iterable[str]) -> Iterator[str]:
    """A line for each file, in order; a prompt that came from no file has its own."""
    places: dict[tuple[str, str], list[str]] = {}
    for line in skipped:
        found = _PLACED.match(line)
        if found is None:
            yield line
        else:
            places.setdefault((found["file"], found["kind"]), []).append(found["place"])
    for (file, kind), of_file in places.items():
        yield f"{file}, {kind}s {', '.join(of_file)}"
