"""A child's questions are one line each, and whatever is no answer stops it without a failure."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from tiny import sampler

from draftloop.decoding.draft_length import LatencyProfile
from draftloop.errors import Interrupted
from draftloop.evaluation.gate_target import LiveOutput, LivePrompt
from draftloop.evaluation.target_questions import ANSWERS, QUESTIONS, AskedServer, Declined

PROMPT = LivePrompt((1, 2, 3), sampler(0.5, top_p=0.9, seed=(1 << 63) - 1), "block", 4, 16)


@contextmanager
def server(answer: Callable[[str], str]) -> Iterator[AskedServer]:
    """Whoever has the target, for one question."""
    (read_question, write_question), (read_answer, write_answer) = os.pipe(), os.pipe()

    def reply() -> None:
        with os.fdopen(read_question) as questions, os.fdopen(write_answer, "w") as answers:
            answers.write(answer(questions.readline()))

    thread = threading.Thread(target=reply)
    thread.start()
    with os.fdopen(write_question, "w") as questions, os.fdopen(read_answer) as answers:
        yield AskedServer(questions, answers)
    thread.join()


def test_questions_and_answers_survive_the_way() -> None:
    costs = LatencyProfile(0.25, (1.0, 1.5))
    output = LiveOutput((5, 6), (-0.5, None), 2)

    def of_latency(line: str) -> str:
        question = QUESTIONS.validate_json(line)
        assert (question.about, question.version) == ("latency", "v0002")
        return ANSWERS.dump_json(costs).decode() + "\n"

    def of_decoding(line: str) -> str:
        question = QUESTIONS.validate_json(line)
        assert question.about == "decoding"
        assert question.prompt == PROMPT
        return ANSWERS.dump_json(output).decode() + "\n"

    with server(of_latency) as asked:
        assert asked.latency("v0002", 1) == costs
    with server(of_decoding) as asked:
        assert asked.decode(None, PROMPT) == output


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "has ended"),
        ("?\n", "no answer that can be read"),
        ('{"t_draft": 1}\n', "no answer that can be read"),
        (ANSWERS.dump_json(Declined("it is stopping")).decode() + "\n", "cannot answer: it is stopping"),
    ],
)
def test_what_is_no_answer_interrupts(answer: str, why: str) -> None:
    with server(lambda _line: answer) as asked, pytest.raises(Interrupted, match=why):
        asked.latency(None, 4)


def test_a_server_that_is_gone_interrupts() -> None:
    read, write = os.pipe()
    os.close(read)
    read_answer, write_answer = os.pipe()
    os.close(write_answer)
    with os.fdopen(read_answer) as answers:
        asked = AskedServer(os.fdopen(write, "w"), answers)
        with pytest.raises(Interrupted, match="has ended"):
            asked.latency(None, 4)
        with pytest.raises(BrokenPipeError):
            asked.questions.close()


def test_what_else_is_printed_disturbs_no_question() -> None:
    program = """
from draftloop.evaluation.target_questions import server_of_this_process
print("before", flush=True)
asked = server_of_this_process()
print("a library says hello", flush=True)
print(asked.latency("v0001", 1))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], input='{"t_draft": 1.0, "t_target": [2.0]}\n', capture_output=True, text=True
    )
    before, question = done.stdout.splitlines()
    assert before == "before"
    assert QUESTIONS.validate_json(question).version == "v0001"
    assert "a library says hello" in done.stderr
    assert "t_target=(2.0,)" in done.stderr
