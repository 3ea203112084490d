"""The seam does the real thing, privately."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from draftloop.errors import StoreError
from draftloop.store.files import FILES, Files, storing


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_directories_are_private_down_to_every_missing_parent(tmp_path: Path) -> None:
    FILES.make_directory(tmp_path / "a" / "b")
    FILES.make_directory(tmp_path / "a" / "b")
    assert (mode(tmp_path / "a"), mode(tmp_path / "a" / "b")) == (0o700, 0o700)


def test_files_are_private(tmp_path: Path) -> None:
    os.close(FILES.open(tmp_path / "f", os.O_CREAT | os.O_WRONLY))
    assert mode(tmp_path / "f") == 0o600


def test_write_all_goes_on_after_short_writes(tmp_path: Path) -> None:
    class ThreeBytesAtATime(Files):
        def write(self, descriptor: int, data: bytes) -> int:
            return super().write(descriptor, data[:3])

    files = ThreeBytesAtATime()
    descriptor = files.open(tmp_path / "f", os.O_CREAT | os.O_WRONLY)
    files.write_all(descriptor, b"0123456789")
    os.close(descriptor)
    assert (tmp_path / "f").read_bytes() == b"0123456789"


def test_only_a_full_sync_asks_macos_to_empty_the_drives_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda _descriptor, command: asked.append(command))
    descriptor = FILES.open(tmp_path / "f", os.O_CREAT | os.O_WRONLY)
    FILES.sync(descriptor)
    assert asked == []
    FILES.sync(descriptor, full=True)
    os.close(descriptor)
    assert asked == [51]


def full_sync_refused_with(number: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on macOS where the drive refuses a full sync; returns the descriptors that were synced in the ordinary way."""

    def refuse(_descriptor: int, _command: int) -> None:
        raise OSError(number, os.strerror(number))

    synced: list[int] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    monkeypatch.setattr(os, "fsync", synced.append)
    return synced


def test_a_drive_that_knows_no_full_sync_gets_the_ordinary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    synced = full_sync_refused_with(errno.ENOTSUP, monkeypatch)
    FILES.sync(99, full=True)
    assert synced == [99]


def test_a_full_sync_that_fails_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    synced = full_sync_refused_with(errno.EIO, monkeypatch)
    with pytest.raises(OSError, match="Input/output error"):
        FILES.sync(99, full=True)
    assert synced == []


def test_a_new_directory_is_one_that_was_not_there(tmp_path: Path) -> None:
    FILES.make_directory(tmp_path / "a" / "b", new=True)
    assert mode(tmp_path / "a" / "b") == 0o700
    with pytest.raises(FileExistsError):
        FILES.make_directory(tmp_path / "a", new=True)


def test_a_library_that_writes_by_itself_is_given_the_name_and_its_refusal_is_the_systems(tmp_path: Path) -> None:
    FILES.produce(tmp_path / "f", lambda path: Path(path).touch())
    assert (tmp_path / "f").exists()

    def refuse(_path: str) -> None:
        raise RuntimeError("[write] Unable to write 100 bytes to file.")

    with pytest.raises(OSError, match="Unable to write 100 bytes"):
        FILES.produce(tmp_path / "g", refuse)


def test_what_others_made_becomes_private(tmp_path: Path) -> None:
    (tmp_path / "f").touch(0o644)
    (tmp_path / "d").mkdir(0o755)
    FILES.make_private(tmp_path / "f")
    FILES.make_private(tmp_path / "d")
    assert (mode(tmp_path / "f"), mode(tmp_path / "d")) == (0o600, 0o700)


def test_remove_takes_files_directories_and_what_is_gone(tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "f").touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    for name in ("d", "f", "link", "never"):
        FILES.remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_refusal_of_the_system_becomes_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"No space left on device.*unharmed.*room"), storing(tmp_path):
        raise OSError(28, "No space left on device")
