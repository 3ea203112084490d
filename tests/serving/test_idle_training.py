"""The child that trains works while nobody asks, and at no other time."""

from __future__ import annotations

import errno
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mortal import HANGS

from draftloop.retraining.running import is_stopped
from draftloop.serving.child_plan import ChildPlan
from draftloop.serving.idle_training import ChildCommand, IdleTraining, Seen, Told

COUNTS = """
import signal, sys, time
from pathlib import Path
file = Path(sys.argv[1])
def end(*_):
    (file.parent / "checkpoint").write_text("written")
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
print("counting", file=sys.stderr, flush=True)
n = 0
while True:
    n += 1
    file.write_text(str(n))
    time.sleep(0.01)
"""


PLAN = ChildPlan(has_target=True, memory_gb=2.0, is_ended=False)


@dataclass
class World:
    """What a server looks like to a learner."""

    root: Path
    idle: bool = True
    captured: int = 0
    plan: ChildPlan | None = PLAN
    killed: int = 0
    said: list[str] = field(default_factory=list)
    states: queue.Queue[str] = field(default_factory=queue.Queue)

    @property
    def file(self) -> Path:
        return self.root / "count"

    @contextmanager
    def learner(self, program: str, idle_seconds: float = 0.0, watch_seconds: float = 1e9) -> Iterator[IdleTraining]:
        seen = Seen(lambda: self.idle, lambda: self.captured, lambda: self.plan)
        command = ChildCommand((sys.executable, "-c", program, str(self.file)), {"GIVEN": "by the server"})

        def kill() -> None:
            self.killed += 1

        told = Told(self.said.append, self.states.put, kill, lambda line: line.strip().upper())
        found = IdleTraining(command, idle_seconds, seen, told, watch_seconds)
        found.start()
        try:
            yield found
        finally:
            found.close()

    def becomes(self, state: str) -> None:
        assert self.states.get(timeout=HANGS) == state

    def count(self) -> int:
        return int(self.file.read_text() or 0) if self.file.exists() else 0

    def counts_on(self) -> None:
        before, until = self.count(), time.monotonic() + HANGS
        while self.count() <= before:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_request_stops_it_at_once_and_idleness_lets_it_go_on(tmp_path: Path) -> None:
    world = World(tmp_path)
    with world.learner(COUNTS) as learner:
        world.becomes("at work")
        world.counts_on()
        world.idle = False
        learner.touch()
        world.becomes("stopped")
        assert learner._child is not None
        until = time.monotonic() + HANGS
        while not is_stopped(learner._child.pid):  # the kernel has the signal, and stops it as soon as it may
            assert time.monotonic() < until
        stood = world.count()
        assert world.states.empty()
        assert world.count() == stood
        world.idle = True
        world.becomes("at work")
        world.counts_on()
    assert (tmp_path / "checkpoint").read_text() == "written"
    assert "learning: counting" in world.said


def test_it_stays_stopped_while_a_request_is_under_way_however_short_the_wait_after_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    with world.learner(COUNTS, idle_seconds=0.0) as learner:
        world.becomes("at work")
        world.counts_on()
        world.idle = False
        learner.touch()
        world.becomes("stopped")
        with learner._lock:
            learner._tick(time.monotonic())
        assert world.states.empty()


def test_one_that_went_on_before_the_server_knew_the_request_is_stopped_too(tmp_path: Path) -> None:
    """A request is counted a moment after it came, and without a time to wait the child may go on in between."""
    world = World(tmp_path)
    with world.learner(COUNTS, idle_seconds=0.0) as learner:
        world.becomes("at work")
        world.counts_on()
        learner.touch()
        world.becomes("stopped")
        world.becomes("at work")
        world.idle = False
        world.becomes("stopped")


def test_a_request_is_no_error_where_the_child_has_just_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS refuses a signal to a group whose only member has ended and was not waited for; Linux takes it."""
    world = World(tmp_path)
    with world.learner(COUNTS) as learner:
        world.becomes("at work")
        world.counts_on()

        def refuse(_group: int, _number: int) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        with monkeypatch.context() as patched:
            patched.setattr(os, "killpg", refuse)
            learner.touch()
        world.becomes("stopped")


def test_a_stopped_child_is_ended_with_a_checkpoint_too(tmp_path: Path) -> None:
    world = World(tmp_path)
    with world.learner(COUNTS) as learner:
        world.becomes("at work")
        world.counts_on()
        world.idle = False
        learner.touch()
        world.becomes("stopped")
    assert (tmp_path / "checkpoint").read_text() == "written"


def test_a_request_while_the_server_ends_does_not_keep_the_child_from_its_checkpoint(tmp_path: Path) -> None:
    world = World(tmp_path)
    slow = COUNTS.replace(
        "def end(*_):",
        "def end(*_):\n    (file.parent / 'ending').touch()\n    while not (file.parent / 'asked').exists():\n"
        "        time.sleep(0.01)",
    )
    with world.learner(slow) as learner:
        world.becomes("at work")
        world.counts_on()
        closing = threading.Thread(target=learner.close)
        closing.start()
        until = time.monotonic() + HANGS
        while not (tmp_path / "ending").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        learner.touch()
        (tmp_path / "asked").touch()
        closing.join()
    assert (tmp_path / "checkpoint").read_text() == "written"


def test_a_child_that_cannot_be_started_is_told_and_ends_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    with world.learner(COUNTS) as learner:
        world.becomes("at work")
        learner._command = ChildCommand((str(tmp_path / "nothing"),), {})
        assert learner._child is not None
        learner._child.kill()
        world.becomes("none")
        world.captured += 1
        until = time.monotonic() + HANGS
        while not any("no process can be started" in line for line in world.said):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert learner._thread.is_alive()


def test_where_memory_is_short_a_request_ends_it_and_it_begins_again(tmp_path: Path) -> None:
    world = World(tmp_path, plan=ChildPlan(has_target=False, memory_gb=1.0, is_ended=True))
    with world.learner(COUNTS) as learner:
        world.becomes("at work")
        world.counts_on()
        world.idle = False
        learner.touch()
        world.becomes("ending")
        world.becomes("none")
        assert world.killed == 1
        assert not (tmp_path / "checkpoint").exists()
        world.idle = True
        world.becomes("at work")
        world.counts_on()
    assert world.killed == 1


def test_where_memory_holds_no_training_none_begins_and_it_is_said_once(tmp_path: Path) -> None:
    world = World(tmp_path, plan=None)
    with world.learner(COUNTS):
        until = time.monotonic() + HANGS
        while not world.said:
            assert time.monotonic() < until
            time.sleep(0.01)
        world.captured += 1  # so it is due again
        world.plan = PLAN
        world.becomes("at work")
    assert [line for line in world.said if "not enough memory" in line] == world.said[:1]


ARGUMENTS = "import sys; print(*sys.argv[2:], file=sys.stderr); raise SystemExit(10)"


@pytest.mark.parametrize(
    ("plan", "arguments"),
    [
        (ChildPlan(has_target=True, memory_gb=2.5, is_ended=False), "--memory-gb 2.500"),
        (ChildPlan(has_target=False, memory_gb=0.75, is_ended=False), "--memory-gb 0.750 --without-target"),
    ],
)
def test_it_is_told_what_it_may_take(tmp_path: Path, plan: ChildPlan, arguments: str) -> None:
    world = World(tmp_path, plan=plan)
    with world.learner(ARGUMENTS):
        world.becomes("at work")
        world.becomes("none")
    assert f"learning: {arguments}" in world.said


def test_without_idle_time_the_champion_is_watched_and_no_request_stops_that(tmp_path: Path) -> None:
    world = World(tmp_path, idle=False, captured=1)
    program = "import sys; print(*sys.argv[2:], file=sys.stderr)\n" + COUNTS
    with world.learner(program, watch_seconds=0.1) as learner:
        world.becomes("watching")
        world.counts_on()
        learner.touch()
        world.counts_on()
        assert world.states.empty()
    assert "learning: --without-target --watch" in world.said


def test_the_champion_is_not_watched_before_something_was_captured(tmp_path: Path) -> None:
    world = World(tmp_path, idle=False)
    with world.learner(ARGUMENTS, watch_seconds=0.1):
        time.sleep(0.5)
        assert world.states.empty()
        world.captured += 1
        world.becomes("watching")
        world.becomes("none")
        time.sleep(0.5)
        assert world.states.empty()


def test_a_stopped_training_makes_way_for_the_watch_with_a_checkpoint(tmp_path: Path) -> None:
    """It has the lock of trainings, and under load nobody would ever look at the champion."""
    world = World(tmp_path)
    with world.learner(COUNTS, watch_seconds=0.2) as learner:
        world.becomes("at work")
        world.counts_on()
        world.idle = False
        learner.touch()
        world.becomes("stopped")
        world.captured += 1
        world.becomes("ending")
        world.becomes("none")
        assert (tmp_path / "checkpoint").read_text() == "written"
        world.becomes("watching")


def test_what_the_child_asks_is_answered(tmp_path: Path) -> None:
    world = World(tmp_path)
    asks = (
        "import sys\nfor n in range(3):\n    print(f'question {n}', flush=True)\n"
        "    print(input(), file=sys.stderr)\nraise SystemExit(10)"
    )
    with world.learner(asks):
        world.becomes("at work")
        world.becomes("none")
        until = time.monotonic() + HANGS
        while len(world.said) < 3:  # its last lines may be read after its end
            assert time.monotonic() < until
            time.sleep(0.01)
    assert world.said == [f"learning: QUESTION {n}" for n in range(3)]


def test_the_server_does_not_speak_of_a_key_that_nobody_pressed(tmp_path: Path) -> None:
    """A training makes way by itself too, and no Ctrl-C reaches it."""
    world = World(tmp_path)
    program = (
        "from draftloop.runtime.signals import answering, handling, AGAIN\nimport os, signal, time\n"
        "with answering(), handling(lambda *_: None, f'stopping: a checkpoint is written; {AGAIN}'):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(1)\nraise SystemExit(10)"
    )
    with world.learner(program):
        world.becomes("at work")
        world.becomes("none")
        until = time.monotonic() + 30
        while not world.said:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert world.said == ["learning: stopping: a checkpoint is written"]


def test_it_waits_until_nobody_has_asked_for_so_long(tmp_path: Path) -> None:
    world = World(tmp_path)
    with world.learner(COUNTS, idle_seconds=HANGS):
        time.sleep(0.5)
        assert world.states.empty()


def test_one_that_the_system_ends_is_told_and_does_not_begin_again_at_once(tmp_path: Path) -> None:
    """For want of memory, say, it would end again and again."""
    world = World(tmp_path)
    with world.learner("import os, signal; os.kill(os.getpid(), signal.SIGKILL)") as learner:
        world.becomes("at work")
        world.becomes("none")
        with learner._lock:
            learner._tick(time.monotonic())
        assert world.states.empty()
        world.captured += 1
        world.becomes("at work")
    assert "learning: the training was ended by signal 9" in world.said


@pytest.mark.parametrize(("code", "again"), [(0, True), (11, True), (10, False), (12, False), (13, False), (1, False)])
def test_after_a_verdict_there_may_be_more_to_do_and_else_not_before_something_was_captured(
    tmp_path: Path, code: int, again: bool
) -> None:
    world = World(tmp_path)
    with world.learner(f"raise SystemExit({code})"):
        world.becomes("at work")
        world.becomes("none")
        if again:
            world.becomes("at work")
            return
        time.sleep(0.5)
        assert world.states.empty()
        world.captured += 1
        world.becomes("at work")


@pytest.mark.parametrize("stopped", [False, True])
def test_no_child_outlives_a_server_that_is_killed(tmp_path: Path, stopped: bool) -> None:
    """A stopped one would hold the lock of trainings for ever."""
    server = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1] / "support")!r})
from draftloop.serving.child_plan import ChildPlan
from draftloop.serving.idle_training import ChildCommand, IdleTraining, Seen, Told
program = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\\nwhile True: signal.pause()"
states = []
seen = Seen(lambda: True, lambda: 0, lambda: ChildPlan(True, 1.0, False))
learner = IdleTraining(ChildCommand((sys.executable, "-c", program), {{}}), 0.0, seen, Told(print, states.append))
learner.start()
while not states: time.sleep(0.01)
learner._idle_seconds = 1e9
if {stopped}: learner.touch()
print(learner._child.pid, flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait(HANGS)
    until = time.monotonic() + HANGS
    while _is_there(child):
        assert time.monotonic() < until
        time.sleep(0.02)


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    try:  # nobody may have waited for it yet
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return Path("/proc").is_dir() is False
