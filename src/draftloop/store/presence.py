"""Who is at work, and how far, for anybody who asks: words that one process writes over, and proof that it lives.

The lock of the work itself is never touched by a look: the holder also locks the file of its presence, and who asks
tries a shared lock on that file alone. So no look can ever refuse the lock to somebody. What is written is a courtesy:
it may be lost, is never an error, and does not go through the seam for changes, as lock files do not.
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

_TRIES = 200  # at 5 ms: of a holder whose file is being looked at, and of a reader that met a write


class Note:
    """A small JSON object at `path` that its one writer writes over in place: cheap enough for every step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, values: dict[str, Any]) -> None:
        """Say this from now on; a disk that refuses is let be. The directory must be there."""
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            try:
                os.pwrite(descriptor, seal(dump(values)), 0)  # what a longer one left behind comes after the newline
            finally:
                os.close(descriptor)

    def read(self) -> dict[str, Any] | None:
        """What was said last; None where nothing was, or nothing that can be read."""
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
    """Whoever works under a lock, as seen from outside. Making one touches nothing.

    Args:
        path: a file beside the lock; the directory is made by the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._note = Note(path)
        self._said: dict[str, Any] | None = None

    @contextmanager
    def shown(self, command: str) -> Iterator[None]:
        """Be seen as `command` for as long as the block runs, or this process lives. The caller holds the lock."""
        descriptor = _locked(self.path)
        self._said = {"process": os.getpid(), "host": socket.gethostname(), "command": command, "since": time.time()}
        self.doing(None)
        try:
            yield
        finally:
            self._said = None
            if descriptor is not None:
                os.close(descriptor)

    def doing(self, what: str | None) -> None:
        """Say what is being done now; nothing outside `shown`."""
        if self._said is not None:
            self._note.write({**self._said, "doing": what})

    def look(self) -> dict[str, Any] | None:
        """What the one at work says of itself (`process`, `host`, `command`, `since`, `doing`); None: nobody is.

        Where it could say nothing, on a full disk, it is `{}`.
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
    """The file, locked until it is closed; None where that cannot be, and nobody will see anything."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        for _ in range(_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.005)  # somebody looks, for an instant
            else:
                return descriptor
        os.close(descriptor)
    return None
