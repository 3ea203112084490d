"""A kill while the log is compacted: the old log or the new one, whole, and no writer's record is lost meanwhile."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from builders import CountingFiles
from fault_table import Row
from killed_worlds import killed_at, run_program
from log_worlds import LogWorld, fresh_groups, topic

from draftloop.data.prompt_groups import prompt_group

pytestmark = pytest.mark.row("real SIGKILL of writers")

NEEDED = [3, 17, 19]
RECORDS = 20
TOPICS = 5_000

BESIDE_WRITERS = """
import json, os, random, select, signal, sys
from pathlib import Path
from log_worlds import LogWorld, topic
from mortal import BETWEEN, Board, MortalFiles
from test_compaction_killed import TOPICS

root, kills = Path(sys.argv[1]), int(sys.argv[2])
board = Board(root / "board")

def append(pipe, first):
    world = LogWorld(root)
    for number in range(first, 10**6, 3):
        world.append([number], prompt=topic(number % TOPICS))
        os.write(pipe, f"{number}\\n".encode())

writers, pipes = [], []
for first in range(3):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        append(writer, first)
    os.close(writer)
    os.set_blocking(reader, False)
    writers.append(child)
    pipes.append(reader)

def acknowledged():
    said = b""
    for pipe in pipes:
        while True:
            try:
                more = os.read(pipe, 1 << 16)
            except BlockingIOError:
                break
            if not more:
                break
            said += more
    return [int(line) for line in said.split()]

done, nobodys = [], set()
for kill in range(kills):
    choose = random.Random(kill)
    select.select(pipes, [], [])
    more = acknowledged()
    done += more
    nobodys.update(number for number in more if choose.random() < 0.9)
    needed = set(range(max(done) + 10_000)) - nobodys  # what comes meanwhile is needed too
    board.text = BETWEEN
    child = os.fork()
    if not child:
        files = MortalFiles(board, choose.randrange(1, 25) if kill % 2 else 0, choose.random())
        LogWorld(root, files).compact(needed)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(json.dumps({"struck": board.text, "killed": os.WIFSIGNALED(status)}))
for child in writers:
    os.kill(child, signal.SIGKILL)
for child in writers:
    os.waitpid(child, 0)
done += acknowledged()
print(json.dumps({"acknowledged": done, "nobodys": sorted(nobodys)}))
"""


def begun(root: Path) -> LogWorld:
    """A log, all of whose train records are in the replay buffer too, after one compaction; the first ten train."""
    world = LogWorld(root)
    world.append(range(100, 140))
    world.compact()
    world.replay.remember(world.append(range(RECORDS)), seed=0)
    return world


def work(world: LogWorld) -> None:
    world.compact(NEEDED)


def test_a_kill_at_any_operation_leaves_the_old_log_or_the_new_one_whole(tmp_path: Path, row: Row) -> None:
    files = CountingFiles()
    counted = begun(tmp_path / "counted")
    splits = {record.prompt: record.split for record in counted.log.records()}
    LogWorld(tmp_path / "counted", files).compact(NEEDED)
    operations = len(files.names)
    assert {"open", "write", "sync", "rename", "sync_directory", "remove"} <= set(files.names)
    shares = [0.0, 0.5, 1.0] if row.full else [0.5]
    deaths = [(at, share) for at in range(1, operations + 1) for share in shares]
    found = killed_at("test_compaction_killed", tmp_path, deaths)
    assert [kill["killed"] for kill in found] == [True] * len(deaths)
    outcomes = Counter[int]()
    for number in range(len(deaths)):
        world = LogWorld(tmp_path / str(number))
        numbers = world.numbers()
        assert numbers in (list(range(RECORDS)), NEEDED)
        outcomes[len(numbers)] += 1
        world.check_blobs(world.replay.records())
        for prompt, split in splits.items():
            assert fresh_groups(world).splits_for([prompt]) == [split]
        world.append([50])  # and it goes on
        world.compact([*NEEDED, 50])
        assert world.numbers() == [*NEEDED, 50]
        world.check_blobs(world.replay.records())
        assert len(world.blobs.files()) == 1
        assert not list(world.log.path.parent.glob(".tmp-*"))
    assert set(outcomes) == {RECORDS, len(NEEDED)}
    row.did(len(deaths), "kills")
    row.struck.update(kill["struck"].rstrip(" 0123456789") for kill in found)


def test_compactions_killed_beside_writers_lose_no_record_that_is_needed_or_new(tmp_path: Path, row: Row) -> None:
    *kills, last = run_program(BESIDE_WRITERS, tmp_path, row.count(12, 300))
    world = LogWorld(tmp_path)
    world.log.repair()
    numbers = world.numbers()
    assert len(set(numbers)) == len(numbers)
    assert set(last["acknowledged"]) - set(last["nobodys"]) <= set(numbers)
    assert len(numbers) < len(last["acknowledged"])
    groups = fresh_groups(world)
    assert all(groups.has_text(prompt_group(topic(number % TOPICS))) for number in last["acknowledged"])
    row.did(sum(kill["killed"] for kill in kills), "kills")
    row.did(len(last["acknowledged"]), "records acknowledged")
    row.struck.update(kill["struck"].rstrip(" 0123456789") for kill in kills if kill["killed"])
