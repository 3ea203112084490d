"""Compacting a log: the oldest goes, what is needed stays, and every reader, writer and split is as it was."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from builders import NO_SYNC, RecordedSyncs, failing_files, make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from log_worlds import LogWorld, append_while_it_copies, blob_of, fresh_groups, topic

from draftloop.data import log as log_module
from draftloop.data.compaction import compact_log, plan_compaction
from draftloop.data.record_lines import to_line
from draftloop.data.splits import hashed_split
from draftloop.data.teacher_blobs import FILE_BYTES
from draftloop.errors import LockedError, StoreError
from draftloop.store.lock import Lock


@pytest.fixture
def world(tmp_path: Path) -> LogWorld:
    return LogWorld(tmp_path)


def test_the_oldest_go_first_until_the_goal_is_met(world: LogWorld) -> None:
    world.append(range(40))
    goal = world.size() * 2 // 3
    done = world.compact(goal=goal)
    numbers = world.numbers()
    assert numbers == list(range(40 - len(numbers), 40))
    assert (done.kept, done.dropped) == (len(numbers), 40 - len(numbers))
    assert world.size() == done.after.total <= goal
    assert goal - done.after.total < 2_000  # no more than it took


def test_what_is_needed_stays_whatever_its_age(world: LogWorld) -> None:
    world.append(range(30))
    done = world.compact(needed=[0, 7, 12])
    assert world.numbers() == [0, 7, 12]
    assert done.dropped == 27
    assert done.needed == {"a test": done.after.log + done.after.teacher}


def test_where_nothing_would_be_freed_nothing_is_written(world: LogWorld) -> None:
    world.append(range(5))
    before = {path: path.read_bytes() for path in world.log.path.parent.iterdir()}
    done = world.compact(needed=range(5))
    assert (done.kept, done.dropped, done.before, done.after) == (5, 0, done.before, done.before)
    assert {path: path.read_bytes() for path in world.log.path.parent.iterdir()} == before


def test_a_log_that_is_not_there_stays_so(world: LogWorld) -> None:
    assert world.compact().dropped == 0
    assert not world.log.path.exists()


def test_a_plan_says_what_would_be_done_and_does_nothing(world: LogWorld) -> None:
    world.append(range(20))
    before = {path: path.read_bytes() for path in world.log.path.parent.iterdir()}
    planned = plan_compaction(world.log, world.blobs, world.replay, dict, 3_000)
    assert {path: path.read_bytes() for path in world.log.path.parent.iterdir()} == before
    done = world.compact(goal=3_000)
    assert (planned.kept, planned.dropped, planned.after.log) == (done.kept, done.dropped, done.after.log)
    assert abs(planned.after.prompts - done.after.prompts) < 300  # the first line, and a few that say false or true


def test_lines_that_stay_are_byte_for_byte_what_they_were_but_for_the_place_of_their_blob(world: LogWorld) -> None:
    kept = world.log.append(make_record(prompt="odd \udc00", messages=({"role": "user", "content": "x"},)))
    world.append(range(20))
    (moved,) = world.append([20])
    world.compact(needed=[int(kept.id, 16), 20])
    lines = world.log.path.read_bytes().splitlines(keepends=True)
    assert lines[0] == to_line(kept)
    (now,) = list(world.log.records())[1:]
    assert now.teacher is not None
    assert now == replace(moved, teacher=now.teacher)
    assert lines[1] == to_line(now)


def test_everything_it_makes_is_private(world: LogWorld) -> None:
    world.append(range(20))
    world.compact()
    modes = {path.name: path.stat().st_mode & 0o777 for path in world.log.path.parent.iterdir()}
    names = ["failures.jsonl", "failures.jsonl.lock", "failures.jsonl.prompts", "teacher-0001.bin", "teacher.bin.lock"]
    assert modes == dict.fromkeys(names, 0o600)


# -- blobs ------------------------------------------------------------------------------------------------------------


def test_blobs_move_into_the_next_file_and_no_place_means_another_blob_than_it_did(world: LogWorld) -> None:
    old = [record.teacher for record in world.append(range(10))]
    world.compact(needed=range(5, 10))
    assert set(world.blobs.files()) == {1}
    places = [record.teacher for record in world.log.records()]
    assert [place.offset // FILE_BYTES for place in places if place] == [1] * 5
    (new,) = world.append([10])
    assert new.teacher is not None
    assert new.teacher.offset > max(place.offset for place in places if place)
    for place in old:
        assert place is not None
        with pytest.raises(StoreError):
            world.blobs.read(place)


def test_what_nobody_refers_to_is_not_copied(world: LogWorld) -> None:
    world.blobs.append(b"torn by a killed writer" * 1_000)
    world.append(range(3))
    done = world.compact(needed=range(3))
    assert world.blobs.size == sum(len(blob_of(f"{n:032x}")) for n in range(3))
    assert done.dropped == 0
    assert done.after.total < done.before.total


def test_the_replay_buffer_keeps_the_blobs_of_records_that_the_log_loses(world: LogWorld) -> None:
    world.replay.remember(world.append(range(10), split="train"), seed=0)
    world.compact(needed=[9])
    kept = world.replay.records()
    assert len(kept) == 10
    world.check_blobs(kept)
    assert world.numbers() == [9]
    assert world.blobs.size == sum(len(blob_of(record.id)) for record in kept)


def test_a_damaged_blob_is_counted_and_its_record_has_none_from_then_on(world: LogWorld) -> None:
    world.append(range(20))
    content = bytearray(world.blobs.path.read_bytes())
    content[-1] ^= 1
    world.blobs.path.write_bytes(content)
    done = world.compact(needed=[18, 19])
    assert done.lost_blobs == 1
    first, second = world.log.records()
    world.check_blobs([first])
    assert second.teacher is None


def test_without_blobs_there_is_no_file_of_them(world: LogWorld) -> None:
    for number in range(20):
        world.log.append(make_record(prompt=topic(number)))
    assert world.compact().dropped == 20
    assert world.blobs.files() == {}


def test_blobs_of_a_log_that_was_deleted_go(world: LogWorld) -> None:
    world.replay.remember(world.append(range(60)), seed=0)
    world.log.path.unlink()
    world.compact()
    world.check_blobs(world.replay.records())
    assert world.numbers() == []
    assert world.blobs.size == sum(len(blob_of(record.id)) for record in world.replay.records())


def test_what_takes_the_place_of_what_was_on_disk_outlives_a_power_loss_too(tmp_path: Path) -> None:
    LogWorld(tmp_path).append(range(20))
    files = RecordedSyncs()
    LogWorld(tmp_path, files).compact()
    assert files.full == [True] * 8  # the index and its name; lines and blobs twice each, and their names


# -- splits -----------------------------------------------------------------------------------------------------------


def test_a_prompt_keeps_its_split_when_its_records_are_gone(world: LogWorld) -> None:
    first = {record.prompt: record.split for record in world.append(range(60))}
    assert set(first.values()) == {"train", "validation", "heldout"}
    world.compact()
    assert world.numbers() == []
    again = {record.prompt: record.split for record in LogWorld(world.log.path.parents[1]).append(range(60))}
    assert again == first


def test_a_near_duplicate_of_a_prompt_that_is_gone_goes_where_that_went(world: LogWorld) -> None:
    topics = (f"Explain the {word} algorithm" for word in ("sorting", "hashing", "walking", "folding", "parsing"))
    world.append(range(10))  # all of these train
    heldout = {}
    for prompt in [*topics, *map(topic, range(10, 60))]:
        record = world.log.append(make_record(prompt=prompt))
        if record.split == "heldout":
            heldout[prompt] = record
    world.compact()
    groups = fresh_groups(world)
    for prompt, record in heldout.items():
        for other in (f"Please, {prompt.lower()}?", prompt.replace("Explain", "Explian")):
            assert groups.splits_for([other]) == ["heldout"]
            assert groups.groups_near(make_record(prompt=other)) >= {record.group}


def test_the_first_ten_prompts_that_train_are_not_ten_others_after_a_compaction(world: LogWorld) -> None:
    world.append(range(12))
    world.compact()
    late = next(n for n in range(12, 300) if hashed_split(make_record(prompt=topic(n)).group) == "heldout")
    assert world.append([late])[0].split == "heldout"


def test_a_group_whose_first_line_stays_and_whose_second_goes_keeps_the_split_of_the_first(world: LogWorld) -> None:
    """As in logs of before near-duplicates were known: one prompt in two splits."""
    world.append(range(10))
    world.log.path.write_bytes(
        world.log.path.read_bytes()
        + to_line(make_record(id="a" * 32, prompt="pears", split="heldout"))
        + to_line(make_record(id="b" * 32, prompt="pears", split="train"))
    )
    before = fresh_groups(world)
    world.compact(needed=[int("a" * 32, 16)])
    after = fresh_groups(world)
    pears = make_record(prompt="pears")
    assert before.splits_for(["pears"]) == after.splits_for(["pears"]) == ["heldout"]
    assert before.in_two_splits(pears)
    assert after.in_two_splits(pears)


def test_a_group_knows_whether_lines_of_it_are_gone(world: LogWorld) -> None:
    world.append(range(3))
    (again,) = world.append([3], prompt=topic(0))
    world.compact(needed=[1, 3])
    groups = fresh_groups(world)
    assert [groups.has_dropped(make_record(prompt=topic(n)).group) for n in range(4)] == [True, False, True, False]
    assert groups.has_dropped(again.group)


# -- readers and writers ----------------------------------------------------------------------------------------------


def test_whoever_reads_meanwhile_reads_the_old_log_to_its_end(world: LogWorld) -> None:
    world.append(range(50))
    reading = world.log.records()
    first = next(reading)
    world.compact()
    world.append([50])
    assert [first.id, *(record.id for record in reading)] == [f"{n:032x}" for n in range(50)]
    assert world.numbers() == [50]


def test_a_torn_line_of_the_old_log_is_not_looked_for_in_the_new_one(world: LogWorld) -> None:
    world.append(range(5))
    with world.log.path.open("ab") as file:
        file.write(to_line(make_record(prompt="torn " * 4_000))[:-9])
    reading = world.log.records()
    next(reading)
    world.compact(needed=[4])
    assert len(list(reading)) == 4
    assert world.log.damage == []


def test_other_writers_notice_and_go_on_in_the_new_log(world: LogWorld, tmp_path: Path) -> None:
    other = LogWorld(tmp_path)
    splits = {record.prompt: record.split for record in world.append(range(40))}
    other.append([40])
    for number in range(41, 47):
        world.compact(needed=[number - 1], goal=0)
        (record,) = other.append([number])
        assert other.append([1_000 + number], prompt=topic(number % 40))[0].split == splits[topic(number % 40)]
        assert record.id in {found.id for found in world.log.records()}


def test_an_inode_that_comes_again_is_not_taken_for_the_file_that_had_it(world: LogWorld, tmp_path: Path) -> None:
    """File systems give the inode of a file that is gone to the next one, so two compactions may bring it back."""
    world.append(range(30))
    spare = world.log.path.with_name("spare")
    spare.hardlink_to(world.log.path)
    other = LogWorld(tmp_path)
    other.log.groups()
    inode = world.log.path.stat().st_ino
    world.compact(needed=[29])
    world.append(range(100, 160))
    spare.write_bytes(world.log.path.read_bytes())
    spare.replace(world.log.path)
    assert world.log.path.stat().st_ino == inode
    groups = other.log.groups()
    assert all(groups.has_text(record.group) for record in world.log.records())


@pytest.mark.parametrize("waits", [False, True])
def test_nobody_waits_while_a_writer_reads_a_compacted_log_anew(
    world: LogWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """Neither where it was compacted before, nor where it was compacted while the writer waited for the lock."""
    world.append(range(30))
    other, under_lock = LogWorld(tmp_path), []
    other.append([30])
    learn, enter, lock = log_module.opening_and_split_of, Lock.__enter__, f"{world.log.path}.lock"

    def learned(body: bytes) -> tuple[str, str]:
        try:
            with Lock(Path(lock), timeout=0):
                under_lock.append(False)
        except LockedError:
            under_lock.append(True)
        return learn(body)

    def compacted_first(self: Lock) -> Lock:
        monkeypatch.setattr(Lock, "__enter__", enter)
        world.compact(needed=range(20, 31))
        monkeypatch.setattr(log_module, "opening_and_split_of", learned)
        return enter(self)

    if waits:
        monkeypatch.setattr(Lock, "__enter__", compacted_first)
    else:
        world.compact(needed=range(20, 31))
        monkeypatch.setattr(log_module, "opening_and_split_of", learned)
    other.append([31])
    assert under_lock == [False] * 11
    monkeypatch.undo()
    assert world.numbers() == list(range(20, 32))


def test_what_is_appended_while_it_copies_is_kept(
    world: LogWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.append(range(20))
    append_while_it_copies(world, tmp_path, range(20, 25), monkeypatch)
    done = world.compact(needed=range(15, 20))
    monkeypatch.undo()
    assert done.dropped == 15
    assert world.numbers() == list(range(15, 25))


def test_damaged_lines_go_to_the_broken_file_and_whole_records_in_them_stay(world: LogWorld) -> None:
    world.append(range(20))
    lines = world.log.path.read_bytes().splitlines()
    lines[3] = lines[3][:50]
    joined = lines[18] + b"\x0b" + lines[19]
    world.log.path.write_bytes(b"\n".join([*lines[:18], joined]) + b"\n")
    done = world.compact(needed=[18, 19])
    assert world.numbers() == [18, 19]
    assert done.damaged_lines == 2
    assert world.log.path.with_name("failures.jsonl.broken").read_bytes() == lines[3] + b"\n" + joined + b"\n"


def test_a_sealed_line_that_is_no_record_here_stays_as_it_is(world: LogWorld) -> None:
    from draftloop.store.sealed_lines import seal, unseal

    world.append(range(20))
    line = world.log.path.read_bytes().splitlines()[0]
    later = seal(unseal(line)[:-1] + b',"unheard_of":1}')
    world.log.path.write_bytes(later + world.log.path.read_bytes())
    world.compact()
    assert [bool(b"unheard_of" in line) for line in world.log.path.read_bytes().splitlines()] == [True]


def move_and_replace(path: Path) -> None:
    content = path.read_bytes()
    path.rename(path.with_name("moved"))
    path.write_bytes(content)


def replace_by_one_with_its_inode(path: Path) -> None:
    """As far as the file system gives it again."""
    content, inode = path.read_bytes(), path.stat().st_ino
    path.unlink()
    for number in range(50):
        path.write_bytes(content)
        if path.stat().st_ino == inode:
            return
        path.rename(path.with_name(f"moved{number}"))
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.read_bytes().index(b"\n") + 1)


@pytest.mark.parametrize("change", [move_and_replace, replace_by_one_with_its_inode, cut])
def test_a_log_that_somebody_replaced_meanwhile_is_left_alone(
    world: LogWorld, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    world.append(range(20))
    writing = world.log.writing

    def replaced() -> object:
        change(world.log.path)
        return writing()

    monkeypatch.setattr(world.log, "writing", replaced)
    with pytest.raises(StoreError, match="somebody replaced it"):
        world.compact()
    monkeypatch.undo()
    assert world.numbers() == list(range(1 if change is cut else 20))
    assert not world.log.index.path.exists()


def test_what_is_appended_while_it_is_asked_what_is_needed_is_kept(world: LogWorld, tmp_path: Path) -> None:
    world.append(range(20))

    def needed() -> dict[str, set[str]]:
        LogWorld(tmp_path).append([20])
        return {"a test": {f"{19:032x}"}}

    done = compact_log(world.log, world.blobs, world.replay, needed, 0)
    assert world.numbers() == [19, 20]
    assert done.dropped == 19


def test_what_fails_before_the_exchange_leaves_no_mark_and_moves_no_damage(
    world: LogWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is said that lines of a prompt were dropped, it stays so; and damage would be moved at every try."""
    records = world.append(range(20))
    with world.log.path.open("ab") as file:
        file.write(b"damaged\n")

    def full_disk(_following: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(world.blobs, "publish", full_disk)
    for _ in range(2):
        with pytest.raises(StoreError, match="No space left"):
            world.compact()
    monkeypatch.undo()
    groups = fresh_groups(world)
    assert not any(groups.has_dropped(record.group) for record in records)
    broken = world.log.path.with_name("failures.jsonl.broken")
    assert not broken.exists()
    world.compact()
    assert broken.read_bytes() == b"damaged\n"
    groups = fresh_groups(world)
    assert all(groups.has_dropped(record.group) for record in records)


@pytest.mark.parametrize("for_good", [False, True])
def test_a_full_disk_at_any_operation_leaves_all_that_is_needed(tmp_path: Path, for_good: bool) -> None:
    at = 0
    while True:
        at += 1
        world = LogWorld(tmp_path / f"{for_good}{at}")
        world.replay.remember(world.append(range(12), split="train"), seed=0)
        files = failing_files(at, for_good)
        failing = LogWorld(tmp_path / f"{for_good}{at}", files)
        try:
            failing.compact(needed=[3, 11])
        except StoreError:
            assert len(files.names) >= at
        else:
            if len(files.names) < at:
                break
        assert world.numbers() in (list(range(12)), [3, 11])
        world.check_blobs(world.replay.records())
        world.append([12])
        world.compact(needed=[3, 11, 12])
        assert world.numbers() == [3, 11, 12]
        world.check_blobs(world.replay.records())
        assert set(world.blobs.files()) == {max(world.blobs.files())}
        assert not list(world.log.path.parent.glob(".tmp-*"))
    assert at > 12


# -- any sequence -----------------------------------------------------------------------------------------------------

STEPS = st.one_of(
    st.tuples(st.just("append"), st.lists(st.integers(0, 25), min_size=1, max_size=4)),
    st.tuples(st.just("compact"), st.lists(st.integers(0, 40), max_size=6)),
    st.tuples(st.just("fail"), st.integers(1, 30)),
    st.tuples(st.just("tear"), st.integers(1, 60)),
    st.tuples(st.just("read"), st.just(0)),
    st.tuples(st.just("remember"), st.just(0)),
)


@given(st.lists(STEPS, min_size=1, max_size=14), st.integers(0, 4_000))
@settings(max_examples=60, deadline=None)
def test_any_sequence_of_appends_compactions_failures_and_readers_keeps_the_promises(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, object]], goal: int
) -> None:
    root = tmp_path_factory.mktemp("world")
    world, other = LogWorld(root), LogWorld(root)
    split_of: dict[str, str] = {}
    logged: list[int] = []  # numbers that must or may be there, in their order
    needed: set[int] = set()
    readers = []
    for kind, what in steps:
        writer = (world, other)[len(logged) % 2]
        if kind == "append":
            numbers = list(range(len(logged), len(logged) + len(what)))  # type: ignore[arg-type]
            for number, about in zip(numbers, what, strict=True):  # type: ignore[call-overload]
                (record,) = writer.append([number], prompt=topic(about))
                assert split_of.setdefault(topic(about), record.split) == record.split
            logged += numbers
        elif kind in ("compact", "fail"):
            needed = {n for n in what if n < len(logged)} if kind == "compact" else needed  # type: ignore[union-attr]
            needed &= set(world.numbers())
            files = failing_files(what) if kind == "fail" else NO_SYNC  # type: ignore[arg-type]
            with suppress(StoreError):
                LogWorld(root, files).compact(needed, goal)
        elif kind == "tear" and world.log.path.exists():
            with world.log.path.open("ab") as file:
                file.write(to_line(make_record())[: int(what)])  # type: ignore[call-overload]
        elif kind == "read":
            readers.append((iter(world.log.records()), list(logged)))
        elif kind == "remember":
            world.replay.remember(world.log.records(), seed=0)
        # Whatever happened: what is there is whole, in order, once; the newest goes last, and the needed not at all.
        numbers = world.numbers()
        assert numbers == sorted(set(numbers))
        assert set(numbers) <= set(logged)
        assert needed <= set(numbers)
        world.check_blobs(world.replay.records())
    for reader, then in readers:
        assert {int(record.id, 16) for record in reader} <= set(logged), then
    groups = fresh_groups(world)
    for prompt, split in split_of.items():
        assert groups.splits_for([prompt]) == [split]
        assert groups.splits_near(make_record(prompt=prompt)) == {split}
