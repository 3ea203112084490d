"""The file of blobs: what is appended is found again by its place, and nothing else passes for it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from builders import RecordedSyncs

from draftloop.data.records import BlobRef
from draftloop.data.teacher_blobs import FILE_BYTES, BlobError, BlobFile
from draftloop.errors import LockedError, StoreError
from draftloop.store.lock import Lock

WRITE = """
import sys
from pathlib import Path
from draftloop.data.teacher_blobs import BlobFile
blobs = BlobFile(Path(sys.argv[1]))
for i in range(int(sys.argv[3])):
    blob = sys.argv[2].encode() * (i * 37 % 500 + 1)
    assert blobs.read(blobs.append(blob)) == blob
"""


@pytest.fixture
def blobs(tmp_path: Path) -> BlobFile:
    return BlobFile(tmp_path / "failures" / "teacher.bin")


def test_what_is_appended_is_found_at_its_place(blobs: BlobFile) -> None:
    written = [bytes([i]) * (i * 100) for i in range(6)]
    places = [blobs.append(blob) for blob in written]
    assert [blobs.read(place) for place in places] == written
    assert [BlobFile(blobs.path).read(place) for place in reversed(places)] == written[::-1]
    assert [place.offset for place in places] == [0, 0, 100, 300, 600, 1000]
    assert [place.length for place in places] == [0, 100, 200, 300, 400, 500]


def test_several_in_one_go_lie_where_they_would_one_by_one_and_cost_one_sync(blobs: BlobFile) -> None:
    written = [bytes([i]) * (i * 100) for i in range(6)]
    files = RecordedSyncs()
    writer = BlobFile(blobs.path, files)
    before = writer.append(b"x")  # makes the file and its directory
    files.full.clear()
    places = writer.extend(iter(written))
    assert files.full == [False]
    one_by_one = BlobFile(blobs.path.with_name("one.bin"))
    assert [before, *places] == [one_by_one.append(blob) for blob in (b"x", *written)]
    assert [blobs.read(place) for place in places] == written
    assert blobs.extend([]) == []


def test_making_one_and_reading_make_nothing(blobs: BlobFile) -> None:
    with pytest.raises(BlobError, match=r"teacher\.bin: the 3 bytes from byte 0 cannot be had: No such file"):
        blobs.read(BlobRef(0, 3, "0" * 16))
    assert not blobs.path.parent.exists()


def test_everything_it_makes_is_private(blobs: BlobFile) -> None:
    blobs.append(b"x")
    modes = {path.name: path.stat().st_mode & 0o777 for path in blobs.path.parent.iterdir()}
    assert modes == dict.fromkeys(["teacher.bin", "teacher.bin.lock"], 0o600)


def test_an_append_syncs_once_and_fully_only_when_it_was_asked_to(blobs: BlobFile) -> None:
    for wanted in (False, True):
        files = RecordedSyncs()
        writer = BlobFile(blobs.path, files, full_sync=wanted)
        writer.append(b"x")
        files.full.clear()  # the first one makes the file and its directory
        writer.append(b"y")
        assert files.full == [wanted]


@pytest.mark.parametrize("change", [{"offset": 1}, {"length": 4}, {"checksum": "0" * 16}, {"length": 6, "offset": 2}])
def test_another_place_or_checksum_is_an_error(blobs: BlobFile, change: dict[str, object]) -> None:
    first = blobs.append(b"hello")
    blobs.append(b"world")
    with pytest.raises(BlobError, match="its checksum does not match"):
        blobs.read(replace(first, **change))  # type: ignore[arg-type]
    assert issubclass(BlobError, StoreError)


@pytest.mark.parametrize("change", [{"offset": 6}, {"length": 11}, {"offset": 2**39}, {"length": 2**70}])
def test_a_place_beyond_the_end_is_an_error_and_reserves_no_memory(blobs: BlobFile, change: dict[str, int]) -> None:
    place = replace(blobs.append(b"hello"), **change)
    with pytest.raises(BlobError, match="the file ends at byte 5"):
        blobs.read(place)


def test_every_flipped_bit_is_seen(blobs: BlobFile) -> None:
    places = [blobs.append(b"first"), blobs.append(b"second")]
    whole = blobs.path.read_bytes()
    for bit in range(5 * 8, len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        blobs.path.write_bytes(damaged)
        assert blobs.read(places[0]) == b"first"
        with pytest.raises(BlobError):
            blobs.read(places[1])


def test_a_torn_tail_is_left_alone_and_the_next_blob_comes_after_it(blobs: BlobFile) -> None:
    first = blobs.append(b"first")
    with blobs.path.open("ab") as file:
        file.write(b"to")
    second = blobs.append(b"second")
    assert (blobs.read(first), blobs.read(second)) == (b"first", b"second")
    assert blobs.path.read_bytes() == b"firsttosecond"


def test_an_append_gives_up_when_another_process_keeps_the_lock(
    blobs: BlobFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs._lock, "timeout", 0)
    with Lock(blobs.path.with_name("teacher.bin.lock")), pytest.raises(LockedError):
        blobs.append(b"x")


def test_several_processes_append_at_once(blobs: BlobFile) -> None:
    writers, each = 3, 15
    env = {"PYTHONPATH": ":".join(sys.path)}
    with ExitStack() as stack:
        commands = [[sys.executable, "-c", WRITE, str(blobs.path), str(w), str(each)] for w in range(writers)]
        processes = [stack.enter_context(subprocess.Popen(command, env=env)) for command in commands]
    assert [process.returncode for process in processes] == [0] * writers
    assert blobs.path.stat().st_size == writers * sum(i * 37 % 500 + 1 for i in range(each))


def test_the_next_file_takes_over_when_it_is_published_and_is_nobodys_before(blobs: BlobFile) -> None:
    first = blobs.append(b"first")
    with blobs.next_file() as following:
        moved = following.add(blobs.read(first))
        second = blobs.append(b"second")
        following.new.settle()
        blobs.publish(following)
    third = blobs.append(b"third")
    assert [place.offset // FILE_BYTES for place in (first, second, moved, third)] == [0, 0, 1, 1]
    found = [blobs.read(place) for place in (first, second, moved, third)]
    assert found == [b"first", b"second", b"first", b"third"]
    assert sorted(path.name for path in blobs.files().values()) == ["teacher-0001.bin", "teacher.bin"]
    assert blobs.size == len(b"firstsecondfirstthird")
    blobs.remove_before(1)
    assert blobs.size == len(b"firstthird")
    with pytest.raises(BlobError, match=r"teacher\.bin: the 5 bytes from byte 0 cannot be had: No such file"):
        blobs.read(first)


def test_a_next_file_that_is_not_published_leaves_nothing(blobs: BlobFile) -> None:
    blobs.append(b"first")
    with blobs.next_file() as following:
        following.add(b"x")
    assert {path.name for path in blobs.path.parent.iterdir()} == {"teacher.bin", "teacher.bin.lock"}


def test_files_of_other_names_are_none_of_them(blobs: BlobFile) -> None:
    blobs.append(b"first")
    for name in ("teacher-1.bin", "teacher-00x1.bin", "teacher-0001.bin.lock", "teachers.bin"):
        blobs.path.with_name(name).write_bytes(b"x")
    assert list(blobs.files()) == [0]
