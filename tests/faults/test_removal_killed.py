"""A kill while records are removed: all others stay whole, and whoever removes again leaves nothing of them behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import CountingFiles
from fault_table import Row
from killed_worlds import killed_at
from log_worlds import LogWorld, blob_of, fresh_groups, topic

from draftloop.data.removal import RecordChoice

pytestmark = pytest.mark.row("real SIGKILL of writers")

BAD = RecordChoice(source="bad")
GOOD, REMOVED = list(range(8)), list(range(8, 16))


def begun(root: Path) -> LogWorld:
    """A log of a good source and a bad one, after one compaction; all that train are in the replay buffer too."""
    world = LogWorld(root)
    world.append(range(100, 140))
    world.compact()
    records = world.append(GOOD)
    world.replay.remember([*records, *world.append(REMOVED, source="bad")], seed=0)
    return world


def work(world: LogWorld) -> None:
    world.remove(BAD)


def test_a_kill_at_any_operation_loses_no_other_record_and_the_next_removal_leaves_nothing(
    tmp_path: Path, row: Row
) -> None:
    files = CountingFiles()
    counted = begun(tmp_path / "counted")
    splits = {record.prompt: record.split for record in counted.log.records()}
    LogWorld(tmp_path / "counted", files).remove(BAD)
    assert {"open", "write", "sync", "rename", "sync_directory", "remove"} <= set(files.names)
    shares = [0.0, 0.5, 1.0] if row.full else [0.5]
    deaths = [(at, share) for at in range(1, len(files.names) + 1) for share in shares]
    found = killed_at("test_removal_killed", tmp_path, deaths)
    assert [kill["killed"] for kill in found] == [True] * len(deaths)
    outcomes = set()
    for number in range(len(deaths)):
        root = tmp_path / str(number)
        world = LogWorld(root)
        numbers = world.numbers()
        assert numbers in ([*GOOD, *REMOVED], GOOD)
        outcomes.add(len(numbers))
        world.check_blobs(world.replay.records())
        world.append([50])  # and it goes on
        world.remove(BAD)
        assert world.numbers() == [*GOOD, 50]
        assert {record.source for record in world.replay.records()} == {"default"}
        world.check_blobs(world.replay.records())
        assert len(world.blobs.files()) == 1
        stored = b"".join(path.read_bytes() for folder in ("failures", "replay") for path in (root / folder).iterdir())
        for gone in REMOVED:
            assert topic(gone).encode() not in stored
            assert blob_of(f"{gone:032x}") not in stored
        groups = fresh_groups(world)
        assert [groups.splits_for([prompt])[0] for prompt in splits] == list(splits.values())
    assert outcomes == {len(GOOD), len(GOOD) + len(REMOVED)}
    row.did(len(deaths), "kills")
    row.struck.update(kill["struck"].rstrip(" 0123456789") for kill in found)
