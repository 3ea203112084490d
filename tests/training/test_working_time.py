"""What passes while a process is stopped is no time of work; what it computed in, is."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from draftloop.retraining.running import is_stopped
from draftloop.training.working_time import BEAT_S, PAUSE_S, WorkingTime


class Times:
    """A clock and a processor's time that go on when told."""

    def __init__(self) -> None:
        self.clock = self.cpu = 0.0

    def go_on(self, seconds: float, computing: float = 0.0) -> None:
        self.clock += seconds
        self.cpu += computing


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def working(times: Times) -> WorkingTime:
    return WorkingTime(lambda: times.clock, lambda: times.cpu)


def test_before_the_first_beat_every_second_counts(times: Times, working: WorkingTime) -> None:
    times.go_on(3600.0)
    assert working.now() == 3600.0


def test_a_gap_without_computing_is_a_pause_whoever_notices_it_first(times: Times, working: WorkingTime) -> None:
    for notice in (working.beat, working.now):
        working.beat()
        before = working.now()
        times.go_on(600.0)
        notice()
        assert working.now() == pytest.approx(before + BEAT_S)


def test_a_short_gap_and_one_in_which_it_computed_are_work(times: Times, working: WorkingTime) -> None:
    working.beat()
    times.go_on(PAUSE_S)
    assert working.now() == PAUSE_S
    times.go_on(60.0, computing=40.0)
    assert working.now() == PAUSE_S + 60.0


def test_waiting_for_a_device_with_beats_is_work(times: Times, working: WorkingTime) -> None:
    for _ in range(100):
        times.go_on(1.0)
        working.beat()
    assert working.now() == 100.0


STOPPED = """
import sys, time
from draftloop.training import working_time
working_time.BEAT_S, working_time.PAUSE_S = 0.02, 0.3
with working_time.WorkingTime() as working:
    began, at = time.monotonic(), working.now()
    print("works", flush=True)
    sys.stdin.readline()
    print(time.monotonic() - began - (working.now() - at), flush=True)
"""


def test_a_process_that_is_stopped_for_a_second_has_not_worked_then() -> None:
    command = [sys.executable, "-c", STOPPED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "works\n"
        assert not is_stopped(process.pid)
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        while not is_stopped(process.pid) or time.monotonic() - began < 1.0:
            time.sleep(0.01)
        process.send_signal(signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        assert float(process.stdout.readline()) > 0.5
