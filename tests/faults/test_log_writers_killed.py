"""Real writers of the log, killed by SIGKILL at any moment: what was acknowledged is there, once."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fault_table import Row
from log_files import read
from mortal import environment, python

from draftloop.data.log import FailureLog

pytestmark = pytest.mark.row("real SIGKILL of writers")

PER_LOG = 50  # kills on one log, so that opening it stays quick

WRITERS = """
import json, os, random, signal, sys, time
from pathlib import Path
from builders import make_record
from draftloop.data.log import FailureLog
from mortal import BETWEEN, Board, MortalFiles, kind

folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
path, board = folder / "failures.jsonl", Board(folder / "board")

def death(choose, number):
    if number % 4 == 2:
        return choose.choice([3, 7, 11, choose.randrange(1, 60)])  # in a write, mostly, which leaves a torn tail
    if number % 4 == 3:
        return choose.randrange(3, 11)  # while mending it
    return 0  # by the parent's hand

def write(pipe, number):
    choose = random.Random(number)
    files = MortalFiles(board, death(choose, number), written=choose.choice([0.0, choose.random(), choose.random()]))
    log = FailureLog(path, files)
    for i in range(10**6):
        record = make_record(id=f"{number:016x}{i:016x}", prompt=f"{number} " + "x" * (i * 997 % 9000))
        os.write(pipe, log.append(record).id.encode() + b"\\n")

for number in range(first, last):
    board.text = BETWEEN
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        write(writer, number)
    os.close(writer)
    choose, acknowledged = random.Random(-number), []
    stop_after, delay = choose.randrange(0, 15), choose.random() * 2e-3
    with os.fdopen(reader, "rb") as lines:
        for line in lines:
            acknowledged.append(line.decode().strip())
            if len(acknowledged) > stop_after and number % 4 < 2:
                until = time.monotonic() + delay
                while time.monotonic() < until:
                    pass
                os.kill(child, signal.SIGKILL)
                break
        acknowledged += [line.decode().strip() for line in lines]
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), number
    print(json.dumps({"struck": kind(board.text), "acknowledged": acknowledged}), flush=True)
"""


def killed_writers(folder: Path, first: int, last: int) -> list[dict[str, Any]]:
    """What each kill struck, and the ids that were acknowledged before it."""
    command = python("-c", WRITERS, folder, first, last)
    done = subprocess.run(command, env=environment(), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_writers_killed_at_any_moment_lose_no_acknowledged_record(tmp_path: Path, row: Row) -> None:
    kills = row.count(15, 1000)
    struck: Counter[str] = Counter()
    for first in range(0, kills, PER_LOG):
        folder = tmp_path / str(first)
        folder.mkdir()
        last = min(first + PER_LOG, kills)
        found = killed_writers(folder, first, last)
        struck.update(kill["struck"] for kill in found)
        acknowledged = [name for kill in found for name in kill["acknowledged"]]
        log = FailureLog(folder / "failures.jsonl")
        log.repair()
        logged = [record.id for record in read(log.path)]
        assert len(set(logged)) == len(logged)
        assert set(acknowledged) <= set(logged)
        assert len(logged) - len(acknowledged) <= last - first  # whole, but killed before it was acknowledged
        row.did(len(acknowledged), "records acknowledged")
    assert sum(struck.values()) == kills
    row.did(kills, "kills")
    row.struck.update(struck)
    if row.full:
        protocol = ("make_directory", "open", "write", "sync", "sync_directory", "truncate")
        assert min(struck[name] for name in protocol) >= 10, struck
