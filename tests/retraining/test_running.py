"""Who is at work, how far, and whether it is stopped; and what was left undone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import pytest

from draftloop.data_directory import DataDirectory
from draftloop.retraining import running as running_module
from draftloop.retraining.running import Running, in_minutes, is_stopped, running, unfinished
from draftloop.training.run import RunDirectory

AT_WORK = """
import sys
from pathlib import Path
from draftloop.data_directory import DataDirectory
from draftloop.training.run import RunDirectory
data = DataDirectory(Path(sys.argv[1]))
with data.training_lock(), data.presence.shown("retrain"):
    data.presence.doing("train: 60 unused failures, at least 50")
    run = RunDirectory.create(data.runs)
    run.describe({"run": run.id, "purpose": "retrain", "config": {}}, {})
    for line in sys.stdin:
        run.note_progress(int(line), 170, 700.0)
        print("noted", flush=True)
"""


@contextmanager
def at_work(data: DataDirectory, step: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that trains, as far as anybody can see."""
    command = [sys.executable, "-c", AT_WORK, str(data.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{step}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "noted\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    return DataDirectory(tmp_path / "data")


def stopped(data: DataDirectory, wanted: bool) -> Running:
    """What is seen once a signal has come through."""
    while True:
        found = running(data, time.time())
        assert found is not None
        if found.stopped == wanted:
            return found


def test_nobody_is_at_work_in_a_directory_that_is_not_there(data: DataDirectory) -> None:
    assert running(data, time.time()) is None
    assert unfinished(data, None) == []
    assert not data.root.exists()


def test_who_trains_is_seen_with_run_step_and_estimate_stopped_or_not_and_gone_when_killed(data: DataDirectory) -> None:
    with at_work(data, 40) as process:
        found = stopped(data, False)
        assert (found.process, found.command, found.run) == (process.pid, "retrain", "r0001")
        assert (found.step, found.steps, found.seconds_left) == (40, 170, 700.0)
        said = f"retrain, process {process.pid}, for less than a minute: run r0001, step 40 of 170, at most about 12"
        assert str(found).startswith(said)
        process.send_signal(signal.SIGSTOP)
        found = stopped(data, True)
        assert str(found).startswith(f"stopped by Ctrl-Z or SIGSTOP: retrain, process {process.pid}")
        assert f"`kill -CONT {process.pid}`" in str(found)
        assert "left" not in str(found)
        process.send_signal(signal.SIGCONT)
        stopped(data, False)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert running(data, time.time()) is None


def test_a_retrain_that_does_not_train_says_what_it_does(data: DataDirectory) -> None:
    with data.training_lock(), data.presence.shown("retrain"):
        found = running(data, time.time())
        assert found is not None
        assert "at its beginning" in str(found)
        data.presence.doing("gate: v0001 has no verdict yet")
        RunDirectory.create(data.runs).finish({})  # of an earlier training of the same process
        found = running(data, time.time())
        assert found is not None
        assert (found.process, found.run) == (os.getpid(), None)
        assert str(found).endswith(": gate: v0001 has no verdict yet")


def test_a_step_that_is_long_in_coming_is_named() -> None:
    late = Running(7, "train", 9000.0, None, "r0001", 40, 170, 700.0, 3000.0)
    assert str(late).endswith("step 40 of 170, at most about 12 minutes left, the last step 50 minutes ago")
    assert "ago" not in str(Running(7, "train", 9000.0, None, "r0001", 40, 170, 700.0, 30.0))


def test_where_nothing_could_be_written_somebody_is_at_work_all_the_same(data: DataDirectory) -> None:
    with data.training_lock(), data.presence.shown("train"):
        data.presence.path.write_bytes(b"")
        assert "process unknown" in str(running(data, time.time()))


def test_without_proc_ps_tells_who_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_module, "Path", lambda _: Path("/none"))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert not is_stopped(process.pid)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        try:
            assert is_stopped(process.pid) == (shutil.which("ps") is not None)
        finally:
            process.kill()
    assert not is_stopped(2**30)


def test_what_was_stopped_or_cut_off_is_listed_and_what_is_finished_or_without_a_checkpoint_is_not(
    data: DataDirectory,
) -> None:
    for purpose in ("train", "retrain", "train", "train"):
        run = RunDirectory.create(data.runs)
        run.describe({"purpose": purpose}, {})
        if run.id != "r0003":
            run.checkpoints.save({"a": mx.array(1.0)}, {"step": int(run.id[1:])})
    RunDirectory(data.runs / "r0004").finish({})
    assert [(one.run, one.step, one.purpose) for one in unfinished(data, None)] == [
        ("r0001", 1, "train"),
        ("r0002", 2, "retrain"),
    ]
    assert [one.run for one in unfinished(data, Running(run="r0002"))] == ["r0001"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(10, "less than a minute"), (59, "1 minute"), (720, "12 minutes"), (7200, "2.0 hours")],
)
def test_durations_are_said_in_minutes_and_hours(seconds: float, said: str) -> None:
    assert in_minutes(seconds) == said
