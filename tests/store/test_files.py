"""The seam does the real thing, privately."""

from __future__ import annotations

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
