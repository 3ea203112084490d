"""Reads files of prompts for a command, and says on stderr what was converted or skipped, with its place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PromptError
from .app import note

if TYPE_CHECKING:
    from ..prompts.files import FileSurvey, PromptFile
    from ..prompts.prompt import Prompt, SkippedPrompt

IN_FULL = 20


def prompts_of(path: Path, limit: int | None, strict: bool) -> list[Prompt]:
    """The first prompts of a file; what is skipped anywhere in it is said. Raises PromptError: it has none."""
    from ..prompts.files import PromptFile
    from ..prompts.prompt import Prompt

    file = PromptFile(path)
    survey = counted([file], strict)
    say_skipped(survey.skipped)
    return list(islice((entry for entry in file if isinstance(entry, Prompt)), limit))


def counted(files: list[PromptFile], strict: bool, others: int = 0) -> FileSurvey:
    """Count the prompts in files; says what was converted. Raises PromptError: there are none, and no `others`."""
    from ..prompts.files import survey_files

    survey = survey_files(files, strict=strict)
    if not others and not survey.prompts:
        first = survey.skipped[0]
        raise PromptError(f"none of {len(survey.skipped):,} prompts is usable: {first.where}: {first.why.detail}")
    for line in survey.said():
        note(line)
    return survey


def say_skipped(skipped: Sequence[SkippedPrompt]) -> None:
    """Name each skipped prompt: the first IN_FULL with the reason, those of files after that by their places alone."""
    for prompt in skipped[:IN_FULL]:
        note(f"skipped: {prompt}")
    numbers: dict[tuple[str, str], list[str]] = {}
    for prompt in skipped[IN_FULL:]:
        if prompt.where.file:
            numbers.setdefault((prompt.where.file, prompt.where.kind), []).append(str(prompt.where.number))
        else:
            note(f"skipped too: {prompt}")
    for (file, kind), of_file in numbers.items():
        note(f"skipped too: {file}, {kind}s {', '.join(of_file)}")
