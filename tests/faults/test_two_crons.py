"""Many retrains at the same instant: one trains, the others say so and leave, and a killed one blocks nobody."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from builders import NO_SYNC
from fault_table import Row
from mortal import HANGS, environment, has_ended, python
from shop import Shop

from draftloop.config import to_yaml
from draftloop.data_directory import DataDirectory
from draftloop.errors import LockedError
from draftloop.retraining.running import is_stopped

pytestmark = pytest.mark.row("two crons at once")

LOCKED = 13

CRON = """
import json, os, signal, sys, time
results = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
from draftloop.cli import run_command
from draftloop.store.lock import Lock

tried = []
enter = Lock.__enter__

def timed(lock):
    if lock.timeout == 0:  # the training's, not one that is held for a moment only
        tried.append(time.monotonic())
    return enter(lock)

Lock.__enter__ = timed
from draftloop.training.run import RunDirectory

stop_at = None
note = RunDirectory.note_progress

def noted(run, step, *rest):
    note(run, step, *rest)
    if step == stop_at:
        os.kill(os.getpid(), signal.SIGSTOP)

RunDirectory.note_progress = noted
print("ready", file=results, flush=True)
for line in sys.stdin:
    arguments, stop_at = json.loads(line)
    tried.clear()
    code = run_command(arguments)
    left = time.monotonic() - tried[0] if tried else None
    print(json.dumps({"code": code, "seconds": left}), file=results, flush=True)
    print("done", file=sys.stderr, flush=True)
"""


@dataclass
class Cron:
    """A process that runs `retrain` whenever it is told to."""

    process: subprocess.Popen[str]

    def begin(self, arguments: list[str], stop_at: int | None = None) -> None:
        """Run `retrain`; it stops, as by SIGSTOP, once it has told of this step of its training."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([arguments, stop_at]) + "\n")
        self.process.stdin.flush()

    def end(self) -> tuple[dict[str, Any], list[str]]:
        """How it ended, and what it said on stderr meanwhile."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        found = json.loads(self.process.stdout.readline())
        return found, [line.strip() for line in iter(self.process.stderr.readline, "done\n")]


@contextmanager
def crons(count: int, folder: Path) -> Iterator[list[Cron]]:
    """So many processes, all ready."""
    with ExitStack() as stack:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = python("-c", CRON)
        processes = [
            subprocess.Popen(command, env=environment(), cwd=folder, text=True, **pipes)  # type: ignore[call-overload]
            for _ in range(count)
        ]
        found = [Cron(stack.enter_context(process)) for process in processes]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        yield found
        for process in processes:
            process.stdin.close()


def arguments(collected: Shop, data: Path) -> list[str]:
    """The command line of a `retrain` in a copy of what was collected."""
    shutil.copytree(collected.data.root, data)
    file = data.with_suffix(".yaml")
    file.write_text(to_yaml(collected.config))
    return ["-c", str(file), "--data-dir", str(data), "retrain"]


def trainings(data: Path) -> list[str]:
    """The runs there were."""
    return sorted(path.name for path in (data / "runs").glob("r*"))


def test_of_many_at_once_exactly_one_trains_and_the_others_leave(tmp_path: Path, collected: Shop, row: Row) -> None:
    rounds, many = row.count(1, 30), row.count(4, 20)
    codes: Counter[int] = Counter()
    with crons(many, tmp_path) as processes:
        for number in range(rounds):
            data = tmp_path / str(number)
            command = arguments(collected, data)
            for cron in processes:
                cron.begin(command)
            ended = [cron.end() for cron in processes]
            trained = [found for found, _ in ended if found["code"] in (0, 11)]
            left = [(found, said) for found, said in ended if found["code"] == LOCKED]
            late = [found for found, _ in ended if found["code"] == 10]  # it came when the other had finished
            assert (len(trained), len(trained) + len(left) + len(late)) == (1, many), ended
            assert all(said[-1].startswith("locked: ") and " is held by " in said[-1] for _, said in left)
            assert trainings(data) == ["r0001"]
            shop = DataDirectory(data)
            assert shop.registry.versions() == ["v0001"]
            assert shop.verdicts.of("v0001") is not None
            assert [entry["trained"] for entry in shop.audit.entries()].count(True) == 1
            row.times["from trying the lock to leaving"] += [found["seconds"] for found, _ in left]
            codes.update(found["code"] for found, _ in ended)
    assert codes[LOCKED] >= rounds
    row.did(rounds * many, "retrains")
    row.did(codes[LOCKED], "of them locked out")


def test_a_killed_holder_blocks_nobody(tmp_path: Path, collected: Shop, row: Row) -> None:
    kills = row.count(1, 10)
    for number in range(kills):
        data = tmp_path / str(number)
        command = arguments(collected, data)
        with crons(1, tmp_path) as (holder,):
            holder.begin(command, stop_at=number % 2)
            deadline = time.monotonic() + HANGS
            while not is_stopped(holder.process.pid) and time.monotonic() < deadline:
                assert not has_ended(holder.process)
            assert trainings(data) == ["r0001"]
            with pytest.raises(LockedError), DataDirectory(data).training_lock():
                pass
            os.kill(holder.process.pid, signal.SIGKILL)
            holder.process.wait()
        began = time.perf_counter()
        with DataDirectory(data).training_lock():
            row.times["from a kill to the next one's lock"].append(time.perf_counter() - began)
        found = Shop(DataDirectory(data, files=NO_SYNC), collected.config).retrain()
        assert (found.outcome, found.trained) in (("promoted", True), ("refused", True))
        assert DataDirectory(data).registry.versions() == ["v0001"]
    row.did(kills, "killed holders")
