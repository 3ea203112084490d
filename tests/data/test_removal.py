"""Removing chosen records: they are really gone, all others are as they were, and no prompt changes its split."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from builders import failing_files, make_record
from log_worlds import LogWorld, append_while_it_copies, blob_of, fresh_groups, topic

from draftloop.data.removal import RecordChoice, choose_records, removal_of
from draftloop.errors import StoreError

BAD = RecordChoice(source="bad")
TWO = re.compile(f"topic [{chr(0x4E00)}{chr(0x4E0B)}]$")
FILES = ("failures", "replay")


@pytest.fixture
def world(tmp_path: Path) -> LogWorld:
    return LogWorld(tmp_path)


def both(world: LogWorld) -> None:
    """Numbers 0 to 9 are good, 10 to 19 bad, 20 to 24 good; all that train are in the replay buffer too."""
    records = world.append(range(10))
    records += world.append(range(10, 20), source="bad")
    world.replay.remember([*records, *world.append(range(20, 25))], seed=0)


def stored_text(root: Path) -> bytes:
    return b"".join(path.read_bytes() for folder in FILES for path in (root / folder).iterdir())


def test_what_is_removed_is_in_no_file_any_more_and_the_rest_is_whole(world: LogWorld, tmp_path: Path) -> None:
    both(world)
    assert topic(12).encode() in stored_text(tmp_path)
    assert blob_of(f"{12:032x}") in stored_text(tmp_path)
    trained = {record.id for record in world.replay.records() if record.source == "bad"}
    done = world.remove(BAD)
    assert world.numbers() == [*range(10), *range(20, 25)]
    assert (done.removed, done.kept, done.replayed) == (10, 15, len(trained))
    assert (done.sources, done.ids) == ({"bad": 10}, {f"{n:032x}" for n in range(10, 20)})
    assert done.before.total > done.after.total
    world.check_blobs(world.replay.records())
    found = stored_text(tmp_path)
    for number in range(10, 20):
        assert topic(number).encode() not in found
        assert blob_of(f"{number:032x}") not in found
    assert len(world.blobs.files()) == 1


def test_a_prompt_keeps_its_split_when_its_records_are_removed(world: LogWorld) -> None:
    splits = {record.prompt: record.split for record in world.append(range(60), source="bad")}
    assert set(splits.values()) == {"train", "validation", "heldout"}
    world.remove(BAD)
    groups = fresh_groups(world)
    assert [groups.splits_for([prompt])[0] for prompt in splits] == list(splits.values())
    assert all(groups.has_dropped(make_record(prompt=prompt).group) for prompt in splits)


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        (RecordChoice(ids=frozenset({f"{3:032x}", f"{24:032x}"})), [n for n in range(25) if n not in (3, 24)]),
        (RecordChoice(before=1_700_000_000.0), list(range(25))),
        (RecordChoice(before=1_700_000_001.0), []),
        (
            RecordChoice(match=re.compile(f"topic [{chr(0x4E00)}{chr(0x4E0B)}]$")),
            [n for n in range(25) if n not in (0, 11)],
        ),
        (
            RecordChoice(source="bad", match=re.compile(f"{chr(0x4E00)}|{chr(0x4E0B)}")),
            [n for n in range(25) if n != 11],
        ),
        (RecordChoice(source="nobody"), list(range(25))),
    ],
    ids=["ids", "before none", "before all", "match", "all must hold", "nobody"],
)
def test_what_is_chosen_goes_and_nothing_else(world: LogWorld, choice: RecordChoice, left: list[int]) -> None:
    both(world)
    planned = removal_of(world.log, world.blobs, choose_records(world.log, world.blobs, world.replay, choice))
    done = world.remove(choice)
    assert world.numbers() == left
    assert {int(record.id, 16) for record in world.replay.records()} <= set(left)
    assert (planned.removed, planned.kept, planned.replayed) == (done.removed, done.kept, done.replayed)


def test_what_only_the_replay_buffer_still_has_goes_too(world: LogWorld, tmp_path: Path) -> None:
    both(world)
    world.log.path.unlink()
    done = world.remove(BAD)
    assert done.removed == 0
    assert done.replayed > 0
    assert topic(12).encode() not in stored_text(tmp_path)
    assert blob_of(f"{12:032x}") not in stored_text(tmp_path)
    world.check_blobs(world.replay.records())


def test_a_line_that_is_no_record_here_goes_by_what_can_be_read_of_it(world: LogWorld) -> None:
    from draftloop.store.sealed_lines import seal, unseal

    both(world)
    first, *others = world.log.path.read_bytes().splitlines(keepends=True)
    later = seal(unseal(others[9].rstrip(b"\n"))[:-1] + b',"unheard_of":1}')
    world.log.path.write_bytes(b"".join([first, later, *others]))
    assert b"unheard_of" in world.log.path.read_bytes()
    world.remove(BAD)
    assert b"unheard_of" not in world.log.path.read_bytes()


def test_what_others_log_meanwhile_stays(world: LogWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both(world)
    append_while_it_copies(world, tmp_path, range(30, 35), monkeypatch)
    world.remove(BAD)
    monkeypatch.undo()
    assert world.numbers() == [*range(10), *range(20, 25), *range(30, 35)]


@pytest.mark.parametrize("for_good", [False, True])
def test_a_full_disk_at_any_operation_loses_nothing_else_and_the_next_try_removes_all(
    tmp_path: Path, for_good: bool
) -> None:
    good, at = [*range(10), *range(20, 25)], 0
    while True:
        at += 1
        root = tmp_path / f"{for_good}{at}"
        world = LogWorld(root)
        both(world)
        files = failing_files(at, for_good)
        try:
            LogWorld(root, files).remove(BAD)
        except StoreError:
            assert len(files.names) >= at
        else:
            if len(files.names) < at:
                break
        assert world.numbers() in (list(range(25)), good)
        world.check_blobs(world.replay.records())
        world.remove(BAD)
        assert world.numbers() == good
        assert {int(record.id, 16) for record in world.replay.records()} <= set(good)
        assert topic(12).encode() not in stored_text(root)
        assert blob_of(f"{12:032x}") not in stored_text(root)
    assert at > 12
