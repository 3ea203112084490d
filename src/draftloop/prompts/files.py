"""Read files of prompts, one prompt at a time; a line that is no prompt is named, and counted beforehand.

A file is read twice: once to count it, so that a run knows its length and a strict one is refused before it begins, and
once for its prompts. Neither keeps more than a line of it.
"""

from __future__ import annotations

import json
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import PromptError
from .chat_messages import NoPrompt
from .formats import Converted, prompt_of
from .llm_log import is_database, logged_prompts
from .prompt import Place, Prompt, SkippedPrompt
from .text_lines import NoText, numbered_lines

LINES = (".jsonl", ".ndjson")
ENDINGS = (".txt", *LINES, ".json")


@dataclass
class FileSurvey:
    """The counts of files of prompts.

    Attributes:
        prompts: how many there are.
        skipped: entries that are no prompts, by file and line.
        converted: prompts by the format that they were in, where it is not the project's own.
        answers: answers of assistants that are no part of the prompts.
        with_turns: prompts of several messages.
        with_tools: prompts that come with tools.
        with_calls: prompts in which the assistant has called some.
    """

    prompts: int = 0
    skipped: list[SkippedPrompt] = field(default_factory=list)
    converted: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    with_turns: int = 0
    with_tools: int = 0
    with_calls: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"converted": dict(self.converted), "reference_answers": self.answers}

    def said(self) -> list[str]:
        """Sentences about what was changed on the way; none where nothing was."""
        kinds = ", ".join(f"{count:,} of {name}" for name, count in self.converted.items())
        return [
            *([f"converted to prompts: {kinds}"] if kinds else []),
            *([f"answers left out, for the target answers anew: {self.answers:,}"] if self.answers else []),
        ]


@dataclass(frozen=True)
class PromptFile:
    """One file.

    Attributes:
        path: of it.
        is_log: what a client or a proxy logged, whatever its name is.
    """

    path: Path
    is_log: bool = False

    def __iter__(self) -> Iterator[Prompt | SkippedPrompt]:
        """Its prompts in order, and in their places entries that are none. Raises PromptError: it cannot be read."""
        for entry in self.entries():
            yield entry if isinstance(entry, SkippedPrompt) else entry.prompt

    def entries(self) -> Iterator[Converted | SkippedPrompt]:
        """The same, each prompt with its conversion."""
        try:
            yield from self._reader()
        except OSError as error:
            raise PromptError(f"{self.path}: cannot be read: {error.strerror or error}") from None

    def _reader(self) -> Iterator[Converted | SkippedPrompt]:
        ending = self.path.suffix.lower()
        if not self.is_log and ending not in ENDINGS:
            known = ", ".join(ENDINGS)
            raise PromptError(
                f"{self.path}: the ending {ending or '(none)'} is unknown; known are {known}, and --from takes logs "
                "whatever they are called"
            )
        if stat.S_IFMT(self.path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):  # a directory says so itself
            raise PromptError(f"{self.path}: a pipe or a device; it is gone through twice, so save it to a file first")
        if self.is_log and is_database(self.path):
            return logged_prompts(self.path)
        if ending == ".txt" and not self.is_log:
            return _texts(self.path)
        return _objects(self.path) if ending == ".json" else _json_lines(self.path)


def survey_files(files: Iterable[PromptFile], *, strict: bool = False) -> FileSurvey:
    """Count the prompts of the files.

    Args:
        files: gone through once.
        strict: refuse what has anything but prompts.

    Raises:
        PromptError: a file that cannot be read, has nothing in it, or is not what `strict` asks for.
    """
    survey = FileSurvey()
    for file in files:
        before = survey.prompts + len(survey.skipped)
        for one in file.entries():
            if isinstance(one, SkippedPrompt):
                if strict:
                    raise PromptError(f"{one.where}: {one.why.detail}")
                survey.skipped.append(one)
                continue
            survey.prompts += 1
            survey.converted[one.format] += 1
            survey.answers += one.answers
            survey.with_turns += len(one.prompt.messages or ()) > 1
            survey.with_tools += one.prompt.tools is not None
            survey.with_calls += any(message.get("tool_calls") for message in one.prompt.messages or ())
        if survey.prompts + len(survey.skipped) == before:
            raise PromptError(f"{file.path}: holds no prompts")
    del survey.converted[""]
    return survey


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a file that has nothing else in it.

    Raises:
        PromptError: it cannot be read, holds none, or a line that is none.
    """
    file = PromptFile(path)
    survey_files([file], strict=True)
    return [one for one in file if isinstance(one, Prompt)]


def _texts(path: Path) -> Iterator[Converted]:
    """A prompt a line. What is no text in one line says that the whole file is something else."""
    for number, line in numbered_lines(path):
        if isinstance(line, NoText):
            raise PromptError(f"{path}, line {number}: {line}")
        if line.strip():
            yield Converted(Prompt(line, where=Place("line", number, str(path))))


def _json_lines(path: Path) -> Iterator[Converted | SkippedPrompt]:
    """One object per line, each by itself."""
    for number, line in numbered_lines(path):
        if isinstance(line, NoText) or line.strip():
            yield _converted(Place("line", number, str(path)), line, _parsed_line)


def _parsed_line(line: str | NoText) -> Any:
    if isinstance(line, NoText):
        raise NoPrompt(str(line))
    try:
        return json.loads(line)  # orjson has no lone surrogates, JavaScript writes them
    except (ValueError, RecursionError) as error:
        raise NoPrompt(f"not a JSON object: {error}") from None


def _objects(path: Path) -> Iterator[Converted | SkippedPrompt]:
    """A list of objects, or objects one after the other. The text is held whole, its values one at a time."""
    lines = []
    for number, line in numbered_lines(path):
        if isinstance(line, NoText):
            raise PromptError(f"{path}, line {number}: {line}")
        lines.append(line)
    for number, value in enumerate(_values("\n".join(lines), path), 1):
        yield _converted(Place("item", number, str(path)), value)


def _converted(
    where: Place, value: Any, parse: Callable[[Any], Any] = lambda value: value
) -> Converted | SkippedPrompt:
    """The prompt that a value holds, with the place that it came from; or why it holds none."""
    try:
        converted = prompt_of(parse(value))
    except NoPrompt as error:
        return SkippedPrompt(where, error.why)
    return replace(converted, prompt=converted.prompt.at(where))


def _values(text: str, path: Path) -> Iterator[Any]:
    """The values of a list, or one after the other. Raises PromptError: one is no JSON, or the list has no end."""
    at, number = _past(" ", text, 0), 0
    in_list = text[at : at + 1] == "["
    at = _past(" ", text, at + in_list)
    while at < len(text) and not (in_list and text[at] == "]"):
        number += 1
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise PromptError(f"{path}, item {number}: not JSON: {error}") from None
        yield value
        at = _past(",", text, at)
    if in_list and text[at : at + 1] != "]":
        raise PromptError(f"{path}: its list ends behind item {number:,} without a bracket: the file is cut short")
    if text[at + 1 :].strip():
        raise PromptError(f"{path}: more comes behind its list")


def _past(what: str, text: str, at: int) -> int:
    """The place behind white space and `what`."""
    while at < len(text) and (text[at].isspace() or text[at] == what):
        at += 1
    return at


_DECODER = json.JSONDecoder()
