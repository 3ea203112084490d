"""Faults of the failure log: kills, cuts, full disks, flipped bits. Small counts here; the figures are in the docs."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from builders import NO_SYNC, CountingFiles, failing_files, make_record

from draftloop.errors import StoreError
from draftloop.records import PairId, Record, to_line
from draftloop.store.files import Files
from draftloop.store.log import FailureLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "failures.jsonl"


def broken(path: Path) -> Path:
    return path.with_name(f"{path.name}.broken")


def filled(path: Path, count: int, **overrides: Any) -> list[Record]:
    log = FailureLog(path, NO_SYNC)
    return [log.append(make_record(prompt=f"prompt {chr(0x4E00 + i)}", **overrides)) for i in range(count)]


def put(path: Path, data: bytes) -> None:
    """Make the file anew: ext4 flushes a file that is cut to nothing and written again, which is slow."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def read(path: Path) -> list[Record]:
    log = FailureLog(path)
    records = list(log.records())
    assert log.damage == []
    return records


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow past `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_cut_at_any_byte_of_the_last_three_records_loses_at_most_the_torn_one(path: Path) -> None:
    kept = filled(
        path, 5, target_output=(5,), pair=PairId("t", "d", "k")
    )  # short lines, for there is a cut at each byte
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    near = {end + shift for end in ends[1:] for shift in (-2, -1, 0, 1)}
    for cut in range(ends[1], ends[4] + 1):
        put(path, whole[:cut])
        broken(path).unlink(missing_ok=True)
        log = FailureLog(path, NO_SYNC)
        new = [log.append(make_record()) for _ in range(10 if cut in near or cut % 100 == 0 else 1)]
        lacks_only_newline = cut + 1 in ends
        complete = sum(end <= cut for end in ends) + lacks_only_newline
        assert read(path) == kept[:complete] + new
        torn = b"" if lacks_only_newline else whole[max(end for end in ends if end <= cut) : cut]
        assert broken(path).exists() == bool(torn)
        if torn:
            assert broken(path).read_bytes() == torn + b"\n"


def test_an_append_that_does_not_repair_first_would_lose_its_record(path: Path) -> None:
    """The broken version that the test above must catch."""
    filled(path, 2)
    path.write_bytes(path.read_bytes()[:-9])
    with path.open("ab") as file:
        file.write(to_line(make_record()))
    log = FailureLog(path)
    list(log.records())
    assert [damage.line_number for damage in log.damage] == [2]


def test_torn_tails_gather_in_the_broken_file(path: Path) -> None:
    filled(path, 1)
    for tail in (b"first", b"second"):
        with path.open("ab") as file:
            file.write(tail)
        FailureLog(path).repair()
    assert broken(path).read_bytes() == b"first\nsecond\n"


def test_a_tail_of_zeros_after_a_power_loss_is_set_aside(path: Path) -> None:
    kept = filled(path, 2)
    with path.open("ab") as file:
        file.write(bytes(5000))
    new = FailureLog(path).append(make_record())
    assert read(path) == [*kept, new]


def test_a_writer_that_is_still_open_repairs_what_another_one_tore(path: Path) -> None:
    log = FailureLog(path)
    first = log.append(make_record())
    with path.open("ab") as file:
        file.write(to_line(make_record())[:100])
    second = log.append(make_record())
    assert read(path) == [first, second]


def test_every_bit_flip_is_reported_by_line_and_the_rest_is_read(path: Path) -> None:
    records = filled(path, 8)
    whole = path.read_bytes()
    random_bits = random.Random(1)
    newlines = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    places = [random_bits.randrange(len(whole)) for _ in range(400)] + newlines
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << random_bits.randrange(8)
        put(path, bytes(flipped))
        line = whole.count(b"\n", 0, place)
        log = FailureLog(path)
        found = list(log.records())
        lost = [] if place in newlines else [records[line]]
        assert found == [record for record in records if record not in lost]
        assert log.damage
        assert log.damage[0].line_number == line + 1
        assert log.damage[0].offset == (newlines[line - 1] + 1 if line else 0)


def test_a_writer_keeps_a_record_whose_newline_was_damaged(path: Path) -> None:
    kept = filled(path, 2)
    path.write_bytes(path.read_bytes()[:-1] + b"\x0b")
    new = FailureLog(path).append(make_record())
    assert read(path) == [*kept, new]
    assert broken(path).read_bytes() == b"\x0b\n"


def test_damage_in_the_middle_does_not_stop_a_writer(path: Path) -> None:
    kept = filled(path, 3)
    damaged = bytearray(path.read_bytes())
    damaged[len(to_line(kept[0])) + 50] ^= 1
    path.write_bytes(damaged)
    new = FailureLog(path).append(make_record())
    log = FailureLog(path)
    assert list(log.records()) == [kept[0], kept[2], new]
    assert [damage.line_number for damage in log.damage] == [2]
    assert path.read_bytes().startswith(damaged)


def test_an_append_takes_four_steps(path: Path) -> None:
    filled(path, 1)
    files = CountingFiles()
    FailureLog(path, files).append(make_record())
    assert files.names == ["make_directory", "open", "write", "sync"]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_an_append_that_fails_at_one_step_leaves_the_log_as_it_was(path: Path, step: int) -> None:
    kept = filled(path, 2)
    before = path.read_bytes()
    log = FailureLog(path, failing_files(step))
    with pytest.raises(StoreError, match="No space left"):
        log.append(make_record())
    assert path.read_bytes() == before
    new = log.append(make_record())
    assert read(path) == [*kept, new]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_an_append_after_which_nothing_works_any_more_harms_no_earlier_record(path: Path, step: int) -> None:
    kept = filled(path, 2)
    with pytest.raises(StoreError, match="No space left"):
        FailureLog(path, failing_files(step, for_good=True)).append(make_record())
    new = FailureLog(path).append(make_record())
    found = read(path)
    assert (found[:2], found[-1]) == (kept, new)
    assert len(found) == (4 if step == 4 else 3)  # written, but neither synced nor taken back: whole, unacknowledged


def test_a_repair_that_fails_at_any_step_loses_no_byte_of_the_tail(path: Path) -> None:
    kept = filled(path, 2)
    whole = path.read_bytes()
    steps = ["make_directory", "open", "open", "write", "sync", "sync_directory", "sync", "truncate", "sync"]
    for step in range(1, len(steps) + 1):
        put(path, whole + b"torn")
        broken(path).unlink(missing_ok=True)
        files = failing_files(step)
        with pytest.raises(StoreError, match="No space left"):
            FailureLog(path, files).repair()
        set_aside = broken(path).read_bytes() if broken(path).exists() else b""
        assert files.names == steps[:step]
        assert path.read_bytes() == whole + b"torn" or set_aside == b"torn\n"
        FailureLog(path).repair()
        assert read(path) == kept


def test_a_disk_that_fills_at_any_byte_of_a_record_leaves_the_log_as_it_was(path: Path) -> None:
    kept = filled(path, 2)
    before = path.read_bytes()
    record = make_record()
    length = len(to_line(record))
    for room in {0, 1, length - 2, length - 1}.union(range(0, length, 17)):
        with file_size_limit(len(before) + room), pytest.raises(StoreError, match="could not be written"):
            FailureLog(path, NO_SYNC).append(record)
        assert path.read_bytes() == before
    with file_size_limit(len(before) + length):
        new = FailureLog(path).append(record)
    assert read(path) == [*kept, new]


def test_a_short_write_that_cannot_even_be_taken_back_is_repaired_by_the_next_append(path: Path) -> None:
    class Stubborn(Files):
        def write(self, descriptor: int, data: bytes) -> int:
            return super().write(descriptor, data[:50])

        def truncate(self, descriptor: int, size: int) -> None:
            raise OSError(5, os.strerror(5))

    kept = filled(path, 2)
    with pytest.raises(StoreError, match="only 50 of"):
        FailureLog(path, Stubborn()).append(make_record())
    new = FailureLog(path).append(make_record())
    assert read(path) == [*kept, new]
    assert len(broken(path).read_bytes()) == 51


KILLED_WRITERS = """
import os, random, signal, sys
from pathlib import Path
from builders import CountingFiles, make_record
from draftloop.store.log import FailureLog

path, kills = Path(sys.argv[1]), int(sys.argv[2])
random.seed(2)

def write(pipe, number):
    def perhaps_die(step, name):
        if number % 2 and step == deadline:
            os.kill(os.getpid(), signal.SIGKILL)
    deadline = random.Random(number).randrange(1, 40)
    log = FailureLog(path, CountingFiles(perhaps_die))
    for i in range(10**6):
        record = make_record(id=f"{number:016x}{i:016x}", prompt=f"{number} " + "x" * (i * 997 % 9000))
        os.write(pipe, log.append(record).id.encode() + b"\\n")

for number in range(kills):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        write(writer, number)
    os.close(writer)
    stop_after = random.randrange(1, 25)
    with os.fdopen(reader, "rb") as acknowledged:
        for count, line in enumerate(acknowledged):
            sys.stdout.write(line.decode())
            if count == stop_after:
                os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_writers_killed_at_any_moment_lose_no_acknowledged_record(path: Path) -> None:
    command = [sys.executable, "-c", KILLED_WRITERS, str(path), "16"]
    env = {"PYTHONPATH": ":".join(sys.path)}
    acknowledged = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.split()
    assert len(acknowledged) > 16
    FailureLog(path).repair()
    found = [record.id for record in read(path)]
    assert len(set(found)) == len(found)
    assert set(acknowledged) <= set(found)
    assert len(found) - len(acknowledged) <= 16  # at most one a kill: whole, but killed before it was acknowledged
