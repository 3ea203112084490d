"""Faults while a generation's blob and record are written: no record ever points at a blob that is not there.

A failed or killed append leaves the earlier blobs and the log as they were; what it tore, nobody points to.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from builders import NO_SYNC, CountingFiles, failing_files, make_record
from fault_table import Row
from log_files import file_size_limit, read
from mortal import environment, python

from draftloop.data.log import FailureLog
from draftloop.data.records import BlobRef, Record
from draftloop.data.teacher_blobs import BlobFile
from draftloop.errors import StoreError
from draftloop.store.files import FILES, Files

STEPS = ["make_directory", "open", "make_directory", "open", "write", "sync", "write", "sync"]  # the blob, the record

KILLED = """
import json, os, signal, sys
from pathlib import Path
from mortal import BETWEEN, Board, MortalFiles, kind
from test_teacher_blobs import STEPS, generate, check

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
board, number = Board(folder / "board"), 0
generate(folder, number)
deaths = [(at, share) for at in range(1, len(STEPS) + 1) for share in (0.0, 0.3, 1.0)]
for at, share in deaths * rounds:
    number += 1
    board.text = BETWEEN
    child = os.fork()
    if not child:
        generate(folder, number, MortalFiles(board, at, share))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    struck = kind(board.text)
    found = check(folder)
    assert 0 in found, number
    generate(folder, 10**6 + number)  # and it goes on
    assert 10**6 + number in check(folder)
    print(json.dumps({"struck": struck, "killed": os.WIFSIGNALED(status), "logged": number in found}), flush=True)
"""


def files_of(folder: Path, files: Files = FILES) -> tuple[BlobFile, FailureLog]:
    return BlobFile(folder / "teacher.bin", files), FailureLog(folder / "failures.jsonl", files)


def blob_of(number: int) -> bytes:
    return f"the blob of {number} ".encode() * (number % 7 + 1)


def generate(folder: Path, number: int, files: Files = FILES) -> Record:
    """What collecting does of one generation: its blob, then the record that points there."""
    blobs, log = files_of(folder, files)
    (record,) = log.extend([make_record(id=f"{number:032x}")], blobs, [blob_of(number)])
    return record


def check(folder: Path) -> set[int]:
    """The numbers of all records that are there, each with the blob it points at."""
    blobs, log = files_of(folder)
    log.repair()
    numbers = [int(record.id, 16) for record in read(log.path)]
    for number, record in zip(numbers, read(log.path), strict=True):
        assert record.teacher is not None
        assert blobs.read(record.teacher) == blob_of(number)
    assert len(set(numbers)) == len(numbers)
    return set(numbers)


@pytest.mark.row("real SIGKILL of writers")
def test_a_kill_at_any_step_leaves_no_record_without_its_blob(tmp_path: Path, row: Row) -> None:
    rounds = row.count(1, 20)
    path = os.pathsep.join([str(Path(__file__).parent), environment()["PYTHONPATH"]])
    done = subprocess.run(
        python("-c", KILLED, tmp_path, rounds),
        env={**environment(), "PYTHONPATH": path},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(STEPS) * 3 * rounds
    assert all(kill["killed"] for kill in found)
    assert Counter(kill["struck"] for kill in found) == {name: STEPS.count(name) * 3 * rounds for name in set(STEPS)}
    logged = [kill["logged"] for kill in found[: len(STEPS) * 3]]
    assert logged[-5:] == [False, True, True, True, True]  # whole on disk before it was acknowledged, or not at all
    assert not any(logged[:-4])
    row.did(len(found), "kills")
    row.struck.update(kill["struck"] for kill in found)


@pytest.mark.row("disk full, short write")
@pytest.mark.parametrize("for_good", [False, True])
def test_a_failure_of_any_step_leaves_the_earlier_generations_as_they_were(
    tmp_path: Path, for_good: bool, row: Row
) -> None:
    for at in range(1, len(STEPS) + 1):
        folder = tmp_path / str(at)
        folder.mkdir()
        generate(folder, 1)
        log_before, blobs_before = ((folder / name).read_bytes() for name in ("failures.jsonl", "teacher.bin"))
        files = failing_files(at, for_good)
        with pytest.raises(StoreError, match="No space left on device"):
            generate(folder, 2, files)
        assert files.names[:at] == STEPS[:at]
        blobs_now = (folder / "teacher.bin").read_bytes()
        assert blobs_now.startswith(blobs_before)
        if at <= 6 and not for_good:
            assert blobs_now == blobs_before  # taken back
        assert (folder / "failures.jsonl").read_bytes().startswith(log_before)
        assert check(folder) >= {1}
        generate(folder, 3)
        assert check(folder) >= {1, 3}
    row.did(len(STEPS), "failures of a single operation")
    row.struck.update(STEPS)


@pytest.mark.row("disk full, short write")
def test_those_are_all_the_steps_there_are(tmp_path: Path, row: Row) -> None:
    generate(tmp_path, 1)
    files = CountingFiles()
    generate(tmp_path, 2, files)
    assert files.names == STEPS
    row.did(len(STEPS), "operations of a generation")


@pytest.mark.row("disk full, short write")
def test_a_disk_that_fills_at_any_byte_of_a_blob_leaves_the_file_as_it_was(tmp_path: Path, row: Row) -> None:
    blobs = BlobFile(tmp_path / "teacher.bin", NO_SYNC)
    first = blobs.append(blob_of(1))
    before, blob = blobs.path.read_bytes(), blob_of(6)
    rooms = {0, 1, len(blob) - 1}.union(range(0, len(blob), row.count(23, 1)))
    for room in rooms:
        with file_size_limit(len(before) + room), pytest.raises(StoreError, match="could not be written") as caught:
            blobs.append(blob)
        assert "\n" not in str(caught.value)
        assert blobs.path.read_bytes() == before
    with file_size_limit(len(before) + len(blob)):
        second = blobs.append(blob)
    assert (blobs.read(first), blobs.read(second)) == (blob_of(1), blob)
    row.did(len(rooms), "sizes of a file of blobs")


@pytest.mark.row("disk full, short write")
def test_a_short_write_that_cannot_be_taken_back_is_passed_over(tmp_path: Path, row: Row) -> None:
    class Stubborn(Files):
        def write(self, descriptor: int, data: bytes) -> int:
            return super().write(descriptor, data[:5])

        def truncate(self, descriptor: int, size: int) -> None:
            raise OSError(5, os.strerror(5))

    blobs = BlobFile(tmp_path / "teacher.bin", Stubborn())
    with pytest.raises(StoreError, match="only 5 of"):
        blobs.append(blob_of(1))
    place = BlobFile(blobs.path).append(blob_of(2))
    assert place == BlobRef(5, len(blob_of(2)), place.checksum)
    assert blobs.read(place) == blob_of(2)
    row.did(1, "short writes that stayed")
