"""What a `retrain` beside a server asks it, because the server alone has the target: latencies, and live decoding.

Questions go out on the child's stdout and answers come back on its stdin, a line of JSON each, one at a time.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TextIO, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..decoding.draft_length import LatencyProfile
from ..errors import Interrupted
from .gate_target import LiveOutput, LivePrompt

_CLOSED = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class LatencyQuestion:
    """The latency profile with a version on the draft (None: the bare draft), up to K = `most`."""

    version: str | None
    most: int
    about: Literal["latency"] = "latency"
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True)
class DecodingQuestion:
    """A prompt to decode with a version on the draft."""

    version: str | None
    prompt: LivePrompt
    about: Literal["decoding"] = "decoding"
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True)
class Declined:
    """There is no answer, and why."""

    why: str
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


Question = Annotated[LatencyQuestion | DecodingQuestion, Field(discriminator="about")]
QUESTIONS: TypeAdapter[LatencyQuestion | DecodingQuestion] = TypeAdapter(Question)
Answer = LatencyProfile | LiveOutput | Declined
ANSWERS: TypeAdapter[Answer] = TypeAdapter(Answer)
_Kind = TypeVar("_Kind", LatencyProfile, LiveOutput)


@dataclass(frozen=True)
class AskedServer:
    """The target in the server that started this process (`TargetElsewhere`).

    Raises Interrupted from both calls: the server has ended, or cannot answer; a later run asks again.
    """

    questions: TextIO
    answers: TextIO

    def latency(self, version: str | None, most: int) -> LatencyProfile:
        """As the server knows it, or measures it now."""
        return self._ask(LatencyQuestion(version, most), LatencyProfile)

    def decode(self, version: str | None, prompt: LivePrompt) -> LiveOutput:
        """Decoded by the server while nobody asks it."""
        return self._ask(DecodingQuestion(version, prompt), LiveOutput)

    def _ask(self, question: LatencyQuestion | DecodingQuestion, kind: type[_Kind]) -> _Kind:
        try:
            self.questions.write(QUESTIONS.dump_json(question).decode() + "\n")
            self.questions.flush()
            line = self.answers.readline()
        except OSError:
            line = ""
        if not line:
            raise Interrupted("the server that has the target has ended; the next `retrain` goes on from there")
        answer: Answer | None = None
        with suppress(ValidationError):
            answer = ANSWERS.validate_json(line)
        if isinstance(answer, Declined):
            raise Interrupted(f"the server that has the target cannot answer: {answer.why}")
        if not isinstance(answer, kind):
            raise Interrupted("the server that has the target gave no answer that can be read")
        return answer


def server_of_this_process() -> AskedServer:
    """Whoever started this process, over its stdin and stdout; what else is printed goes to stderr from now on."""
    questions = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return AskedServer(questions, sys.stdin)
