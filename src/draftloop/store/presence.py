"""A process at work leaves a note of itself and of how far it is, which others read, and a proof that it is alive.

Reading never touches the lock of the work itself: the holder also locks its presence file, and a reader tries a shared
lock on that file alone, so no reader can make the work fail to get its lock. The note is a courtesy: it may be lost, is
never an error, and like lock files does not go through the seam for changes.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from .files import FILE_MODE
from .sealed_lines import RecordError, dump, seal, unseal

_TRIES = 200  # at 5 ms: of a holder whose file is being read, and of a reader that met a write


class Note:
    """A small JSON object at `path` that its one writer overwrites in place: cheap enough for every step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, values: dict[str, Any]) -> None:
        """Overwrite the note; a disk that refuses is ignored. The directory must exist."""
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            try:
                os.pwrite(descriptor, seal(dump(values)), 0)  # what a longer one left behind comes after the newline
            finally:
                os.close(descriptor)

    def read(self) -> dict[str, Any] | None:
        """The last note; None if there is none that can be read."""
        for _ in range(_TRIES):
            try:
                values: dict[str, Any] = orjson.loads(unseal(self.path.read_bytes().partition(b"\n")[0]))
            except OSError:
                return None
            except (RecordError, orjson.JSONDecodeError):
                time.sleep(0.005)  # it is just being written
            else:
                return values
        return None


class Presence:
    """A process that works under a lock, as others see it. Making one touches nothing.

    Args:
        path: a file beside the lock; the directory is made by the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._note = Note(path)
        self._said: dict[str, Any] | None = None

    @contextmanager
    def shown(self, command: str, how: str | None = None) -> Iterator[None]:
        """Be visible as `command` while the block runs and this process lives. The caller holds the lock.

        Args:
            command: in a word or two.
            how: it works, in a few words; None where there is nothing to say.
        """
        descriptor = _locked(self.path)
        self._said = {"process": os.getpid(), "host": socket.gethostname(), "command": command, "since": time.time()}
        self._said |= {} if how is None else {"how": how}
        self.doing(None)
        try:
            yield
        finally:
            self._said = None
            if descriptor is not None:
                os.close(descriptor)

    def doing(self, what: str | None) -> None:
        """Write what is being done now; does nothing outside `shown`."""
        if self._said is not None:
            self._note.write({**self._said, "doing": what})

    def look(self) -> dict[str, Any] | None:
        """The note of the process at work (`process`, `host`, `command`, `since`, `how`, `doing`); None: nobody.

        It is `{}` if that process could write nothing, on a full disk.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return self._note.read() or {}
        finally:
            os.close(descriptor)
        return None


def _locked(path: Path) -> int | None:
    """The file, locked until it is closed; None if it cannot be, and then nobody sees the process."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        for _ in range(_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.005)  # somebody reads it, for an instant
            else:
                return descriptor
        os.close(descriptor)
    return None
