"""Answers what a training without the target asks, on the model thread, while nobody else asks anything.

A prompt is decoded round by round, so a request that comes waits for one round at most; a timing that a request
interrupts begins anew later. Nothing of it is recorded.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from pydantic import ValidationError

from ..decoding.decoder import Decoding, Round
from ..decoding.draft_length import LatencyProfile
from ..errors import DraftloopError
from ..evaluation.gate_target import live_output
from ..evaluation.latency import QUICK, machine_fingerprint, measure_latency
from ..evaluation.latency_profiles import LatencyProfiles
from ..evaluation.target_questions import ANSWERS, QUESTIONS, Answer, Declined, DecodingQuestion, LatencyQuestion
from ..models.pair import Pair
from ..runtime.memory import REFUSALS
from .error_middleware import frames

_log = logging.getLogger(__name__)


class _Asked:
    """A question, and where its answer is waited for."""

    def __init__(self, question: LatencyQuestion | DecodingQuestion) -> None:
        self.question = question
        self.answer: queue.SimpleQueue[Answer] = queue.SimpleQueue()


@dataclass
class _Decoded:
    """A prompt that is being decoded."""

    turns: Iterator[Round | None]
    rounds: list[Round] = field(default_factory=list)


class _RequestWaits(Exception):
    """What takes long is given up, for now."""


class ChildQuestions:
    """Between the thread that talks to the child and the model thread.

    Args:
        pair_with: the pair with a version on the draft, as it decodes.
        costs: what is known of pairs on this machine.
        is_wanted: whether a request waits.
        say: told what takes time.
    """

    def __init__(
        self,
        pair_with: Callable[[str | None], Pair],
        costs: LatencyProfiles,
        is_wanted: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self._pair_with, self._costs, self._is_wanted, self._say = pair_with, costs, is_wanted, say
        self._waiting: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        self._asked: _Asked | None = None
        self._decoded: _Decoded | None = None
        self._is_closed = False

    # On any other thread ---------------------------------------------------------------------------------------------

    def answer(self, line: str) -> str:
        """The answer to a line, when there is one; it may take as long as the server is busy."""
        try:
            asked = _Asked(QUESTIONS.validate_json(line))
        except ValidationError as error:
            return ANSWERS.dump_json(Declined(f"no question that is known: {error.error_count()} errors")).decode()
        self._waiting.put(asked)
        if self._is_closed:
            asked.answer.put(Declined("it is stopping"))
        return ANSWERS.dump_json(asked.answer.get()).decode()

    def close(self) -> None:
        """Decline what waits, and whatever comes."""
        self._is_closed = True
        while not self._waiting.empty():
            self._waiting.get().answer.put(Declined("it is stopping"))
        if self._asked is not None:
            self._asked.answer.put(Declined("it is stopping"))

    # On the model thread ---------------------------------------------------------------------------------------------

    def work(self) -> bool:
        """Do a piece of what was asked; whether there was anything."""
        if self._asked is None:
            if self._waiting.empty():
                return False
            self._asked = self._waiting.get()
        try:
            answer = self._worked_on(self._asked.question)
        except _RequestWaits:
            return True
        except (DraftloopError, OSError, *REFUSALS) as error:
            answer = Declined(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the child can do without an answer, and requests not
            _log.error("%s while a training was answered:\n%s", type(error).__name__, frames(error))
            answer = Declined("it failed at this question; its log says why")
        if answer is not None:
            self._asked.answer.put(answer)
            self._asked = self._decoded = None
        return True

    def _worked_on(self, question: LatencyQuestion | DecodingQuestion) -> Answer | None:
        """The answer; None where there is more to do."""
        if isinstance(question, LatencyQuestion):
            return self._latency(question)
        if self._decoded is None:
            pair, prompt = self._pair_with(question.version), question.prompt
            self._decoded = _Decoded(Decoding(pair, prompt.tokens, prompt.settings).turns())
        for turn in self._decoded.turns:
            if turn is not None:
                self._decoded.rounds.append(turn)
            return None
        return live_output(self._decoded.rounds)

    def _latency(self, question: LatencyQuestion) -> LatencyProfile:
        pair, most = self._pair_with(question.version), question.most

        def give_way(_done: int, _of: int) -> None:
            if self._is_wanted():
                raise _RequestWaits

        measure = partial(measure_latency, pair, most, QUICK, on_timed=give_way)
        key = machine_fingerprint(pair, greedy=False)
        known = self._costs.of_or_measured(key, most, measure, self._say).costs
        return LatencyProfile(known.t_draft, known.t_target[: most + 1])
