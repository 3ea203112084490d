"""Files and directories that appear whole or not at all. Knows nothing of what they hold."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from ..errors import StoreError
from .files import FILES, Files

TEMPORARY_PREFIX = ".tmp-"
_BUFFER = 1 << 20  # of a large file, held until it is written


def temporary_path(directory: Path) -> Path:
    """A fresh name in `directory` that `remove_leftovers` recognises."""
    return directory / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"


def remove_leftovers(directory: Path, files: Files = FILES) -> None:
    """Remove what killed processes left half-written. The caller holds the lock of all writers of `directory`."""
    for leftover in directory.glob(f"{TEMPORARY_PREFIX}*"):
        files.remove(leftover)


def write_new(path: Path, data: bytes, files: Files = FILES, full: bool = False) -> None:
    """Write a file that is not there yet and sync it. Raises OSError: what the system said, or it is there."""
    descriptor = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        files.write_all(descriptor, data)
        files.sync(descriptor, full)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes, files: Files = FILES, full: bool = False) -> None:
    """Replace `path` by `data`: at every instant, and after a crash, it is the old file or the new one.

    Args:
        path: in a directory that is there.
        data: all of it.
        files: the seam.
        full: outlive a power loss on macOS too (`Files.sync`).

    Raises:
        OSError: what the system said; `path` is then as it was, or already new if only the last sync failed.
    """
    temporary = temporary_path(path.parent)
    try:
        write_new(temporary, data, files, full)
        files.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            files.remove(temporary)
        raise
    files.sync_directory(path.parent, full)


class NewFile:
    """A large file that is written piece by piece under a temporary name, and takes its own at one instant.

    `with NewFile(directory) as new:` removes it at the end, unless it was published. It outlives a power loss, on macOS
    too: what it takes the place of was on disk for long.

    Args:
        directory: that it will lie in; it is there.
        files: the seam.

    Attributes:
        size: of what was written so far, in bytes.
    """

    def __init__(self, directory: Path, files: Files = FILES) -> None:
        self.size = 0
        self._path = temporary_path(directory)
        self._files = files
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._descriptor: int | None = None
        self._is_published = False

    def __enter__(self) -> NewFile:
        """Make it. Raises OSError: what the system said."""
        self._descriptor = self._files.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        return self

    def __exit__(self, *_error: object) -> None:
        self._close()
        if not self._is_published:
            with suppress(OSError):  # failing that, `remove_leftovers` removes it
                self._files.remove(self._path)

    def write(self, data: bytes) -> None:
        """Add to its end. Raises OSError: what the system said."""
        self.size += len(data)
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= _BUFFER:
            self._flush()

    def sync(self) -> None:
        """Put what was written so far on disk; a later `settle` is the faster. Raises OSError: what the system said."""
        assert self._descriptor is not None
        self._flush()
        self._files.sync(self._descriptor, full=True)

    def settle(self) -> None:
        """Put all of it on disk; nothing is written after that. Raises OSError: what the system said."""
        self.sync()
        self._close()

    def publish(self, path: Path) -> None:
        """Let it take the place of `path`, once it is settled. Raises OSError: `path` is the old or the new file."""
        self._files.rename(self._path, path)
        self._is_published = True
        self._files.sync_directory(path.parent, full=True)

    def _flush(self) -> None:
        assert self._descriptor is not None
        if self._waiting:
            self._files.write_all(self._descriptor, b"".join(self._waiting))
            self._waiting, self._waiting_bytes = [], 0

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def publish_directory(temporary: Path, final: Path, files: Files = FILES, full: bool = False) -> None:
    """Make every file under `temporary` durable and private, then move the directory to `final` in one step.

    Args:
        temporary, final: on one file system.
        files: the seam.
        full: outlive a power loss on macOS too (`Files.sync`).

    Raises:
        StoreError: `final` exists; nothing is ever published over it.
        OSError: what the system said; `final` is then absent, or whole if only the last sync failed.
    """
    if os.path.lexists(final):
        raise StoreError(f"{final} exists already and is never overwritten. Publish under a new name.")
    for path in sorted(temporary.rglob("*"), reverse=True):
        _settle(path, files, full)
    _settle(temporary, files, full)
    files.rename(temporary, final)
    files.sync_directory(final.parent, full)


def _settle(path: Path, files: Files, full: bool) -> None:
    files.make_private(path)
    descriptor = files.open(path, os.O_RDONLY)
    try:
        files.sync(descriptor, full)
    finally:
        os.close(descriptor)
