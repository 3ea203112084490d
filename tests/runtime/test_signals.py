"""The first signal is a request, the second one interrupts, and afterwards everything is as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from draftloop.runtime.signals import answering, stop_request

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_becomes_a_request(number: signal.Signals) -> None:
    with stop_request() as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_interrupts_at_once(second: signal.Signals) -> None:
    with stop_request() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
        assert stop


def test_the_handlers_before_are_put_back_even_after_an_error() -> None:
    before = handlers()
    with stop_request():
        assert handlers() != before
    assert handlers() == before
    with pytest.raises(RuntimeError, match="oh"), stop_request():
        raise RuntimeError("oh")
    assert handlers() == before


def test_outside_the_main_thread_the_handlers_stay_and_nothing_is_requested() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with stop_request() as stop:
            seen.append((bool(stop), handlers()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


BUSY = """
import hashlib, signal, sys
from draftloop.runtime.signals import answering, stop_request
def deaf():
    words = ["busy"]
    while True:
        try:
            while words:
                print(words.pop(), flush=True)
            hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2_000_000_000)  # for half an hour in C, where no handler runs
        except KeyboardInterrupt:  # it came before the call
            pass
def work():
    print("busy", flush=True)
    sys.stdin.read()
with answering():
    {block}
"""


def busy(block: str) -> subprocess.Popen[str]:
    """A process whose main thread never gets to the point at which it would stop."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.replace("{block}", block)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("block", "answer"),
    [
        ("deaf()", "stopping; Ctrl-C again stops at once\n"),
        (
            "\n    with stop_request('stopping: a checkpoint is written'): deaf()",
            "stopping: a checkpoint is written; Ctrl-C again stops at once\n",
        ),
    ],
    ids=["nobody listens", "a loop listens"],
)
def test_the_first_signal_is_answered_while_the_main_thread_is_busy_and_the_second_ends_it(
    block: str, answer: str, number: signal.Signals
) -> None:
    with busy(block) as process:
        assert process.stderr is not None
        process.send_signal(number)
        assert process.stderr.readline() == answer
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "stopped at once; everything acknowledged is kept\n"
        assert process.wait() == 130


def test_a_signal_that_is_no_request_to_stop_is_answered_by_nobody() -> None:
    with busy("\n    signal.signal(signal.SIGUSR1, lambda *_: None)\n    work()") as process:
        process.send_signal(signal.SIGUSR1)
        _, said = process.communicate("")
    assert (process.returncode, said) == (0, "")


def test_one_that_stops_in_time_is_not_said_twice() -> None:
    with busy("\n    try: work()\n    except KeyboardInterrupt: print('stopped', file=sys.stderr)") as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 0
    assert said.splitlines().count("stopped") == 1


def test_answering_leaves_handlers_as_they_were() -> None:
    before = handlers()
    with answering():
        assert handlers() != before
    assert handlers() == before
    assert signal.set_wakeup_fd(-1) == -1


def test_an_interrupt_while_the_commands_are_loaded_is_one_line() -> None:
    """Loading them is held up by a module of that name which waits."""
    program = (
        "import sys, types\n"
        "class Waiting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click': print('loading', flush=True); sys.stdin.read()\n"
        "sys.meta_path.insert(0, Waiting())\n"
        "from draftloop.__main__ import main\n"
        "main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert (process.returncode, said) == (130, "stopped: interrupted\n")
