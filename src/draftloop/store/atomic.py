"""Files and directories that appear whole or not at all. Knows nothing of what they hold."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from ..errors import StoreError
from .files import FILES, Files

TEMPORARY_PREFIX = ".tmp-"


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
