"""What a training without the target asks is answered as the target here would, and never before a request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mortal import HANGS
from tiny import sampler, tiny_pair

from draftloop.decoding.draft_length import LatencyProfile
from draftloop.errors import AdapterError
from draftloop.evaluation.gate_target import LiveOutput, LivePrompt, LoadedTarget
from draftloop.evaluation.latency_profiles import LatencyProfiles
from draftloop.evaluation.target_questions import ANSWERS, QUESTIONS, Declined, DecodingQuestion, LatencyQuestion
from draftloop.models.pair import Pair
from draftloop.serving.child_questions import ChildQuestions

PROMPT = LivePrompt((3, 1, 4, 1, 5), sampler(0.8, seed=7), "rejection", 3, 24)


@dataclass
class World:
    """The server, as what answers a child sees it."""

    pair: Pair
    costs: LatencyProfiles
    wanted: list[bool] = field(default_factory=list)  # what is said of requests, one look after the other; then none
    said: list[str] = field(default_factory=list)

    def pair_with(self, version: str | None) -> Pair:
        if version is not None:
            raise AdapterError(f"{version} is damaged")
        return self.pair.twin()

    @contextmanager
    def asked(self, line: str) -> Iterator[tuple[ChildQuestions, list[str]]]:
        """Somebody waits for an answer, which is in the list as soon as there is one."""
        questions = ChildQuestions(
            self.pair_with, self.costs, lambda: self.wanted.pop(0) if self.wanted else False, self.said.append
        )
        answers: list[str] = []
        waiting = threading.Thread(target=lambda: answers.append(questions.answer(line)))
        waiting.start()
        yield questions, answers
        waiting.join(HANGS)
        assert len(answers) == 1


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tiny_pair(likeness=0.8), LatencyProfiles(tmp_path / "costs.json"))


def work(questions: ChildQuestions, answers: list[str]) -> int:
    """How many pieces of work it took."""
    pieces = 0
    while not answers:
        pieces += questions.work()
    return pieces


def line_of(question: LatencyQuestion | DecodingQuestion) -> str:
    return QUESTIONS.dump_json(question).decode()


def test_a_prompt_is_decoded_as_where_the_target_is_loaded_and_round_by_round(world: World) -> None:
    with world.asked(line_of(DecodingQuestion(None, PROMPT))) as (questions, answers):
        pieces = work(questions, answers)
    found = ANSWERS.validate_json(answers[0])
    assert isinstance(found, LiveOutput)
    here = LoadedTarget().decode(world.pair.twin(), PROMPT)
    assert found.rounds == here.rounds
    assert len(found.tokens) == len(found.log_p) == PROMPT.max_tokens
    assert [value or 0.0 for value in found.log_p] == pytest.approx(here.log_p.tolist(), abs=1e-4)
    assert pieces >= found.rounds


def test_latencies_are_measured_once_and_kept(world: World) -> None:
    with world.asked(line_of(LatencyQuestion(None, 4))) as (questions, answers):
        work(questions, answers)
    found = ANSWERS.validate_json(answers[0])
    assert isinstance(found, LatencyProfile)
    assert len(found.t_target) == 5
    assert len(world.said) == 1
    with world.asked(line_of(LatencyQuestion(None, 2))) as (questions, answers):
        work(questions, answers)
    again = ANSWERS.validate_json(answers[0])
    assert isinstance(again, LatencyProfile)
    assert again.t_target == found.t_target[:3]
    assert len(world.said) == 1


def test_a_request_interrupts_a_timing_which_begins_anew(world: World) -> None:
    world.wanted = [False, True, True, False]
    with world.asked(line_of(LatencyQuestion(None, 2))) as (questions, answers):
        while not world.said:
            questions.work()
        assert world.wanted == [True, False]  # it gave way at the second look
        assert not answers
        work(questions, answers)
    assert isinstance(ANSWERS.validate_json(answers[0]), LatencyProfile)
    assert len(world.said) == 3


def test_what_cannot_be_answered_is_declined(world: World) -> None:
    with world.asked(line_of(DecodingQuestion("v0001", PROMPT))) as (questions, answers):
        work(questions, answers)
    assert ANSWERS.validate_json(answers[0]) == Declined("v0001 is damaged")
    with world.asked('{"about": "the weather"}') as (questions, answers):
        pass
    assert isinstance(ANSWERS.validate_json(answers[0]), Declined)


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), ValueError("nobody thought of it")])
def test_whatever_goes_wrong_with_a_question_the_server_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_version: str | None) -> Pair:
        raise error

    monkeypatch.setattr(world, "pair_with", fail)
    with world.asked(line_of(DecodingQuestion(None, PROMPT))) as (questions, answers):
        work(questions, answers)
    assert isinstance(ANSWERS.validate_json(answers[0]), Declined)
    monkeypatch.undo()
    with world.asked(line_of(DecodingQuestion(None, PROMPT))) as (questions, answers):
        work(questions, answers)
    assert isinstance(ANSWERS.validate_json(answers[0]), LiveOutput)


@pytest.mark.parametrize("begun", [False, True])
def test_whoever_waits_is_told_that_it_stops(world: World, begun: bool) -> None:
    with world.asked(line_of(DecodingQuestion(None, PROMPT))) as (questions, answers):
        while begun and not questions.work():
            pass
        while not begun and questions._waiting.empty():
            pass
        questions.close()
    assert ANSWERS.validate_json(answers[0]) == Declined("it is stopping")
    assert questions.answer(line_of(DecodingQuestion(None, PROMPT))) == answers[0]
