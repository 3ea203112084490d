"""One lock between processes, freed by the kernel when its holder dies. Knows nothing of what it guards."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import LockedError
from .files import FILE_MODE, FILES, Files, storing

WAIT_S = 60.0  # for locks that are held for a moment only; a wait that long means a stuck holder
POLL_S = 0.002


class Lock:
    """`with Lock(path, timeout=0):` holds the lock file `path`, across processes and threads.

    Args:
        path: the lock file; it stays there and names its last holder. Its directory is made when missing.
        timeout: seconds to wait for another holder; 0 tries once.

    Raises:
        LockedError: on entering, when another holder kept it for `timeout` seconds.
        StoreError: on entering, when the lock file cannot be made.
    """

    def __init__(self, path: Path, timeout: float = WAIT_S, files: Files = FILES) -> None:
        self.path = path
        self.timeout = timeout
        self._files = files
        self._lock = FileLock(path, mode=FILE_MODE)

    def __enter__(self) -> Lock:
        with storing(self.path):
            self._files.make_directory(self.path.parent)
            try:
                self._lock.acquire(self.timeout, POLL_S)
            except Timeout:
                raise LockedError(self._refusal()) from None
        with suppress(OSError), self.path.open("r+") as file:  # only a courtesy to whoever waits
            file.write(f"process {os.getpid():<20}")  # over the old one: truncating would make ext4 flush the file
        return self

    def __exit__(self, *_error: object) -> None:
        self._lock.release()

    def _refusal(self) -> str:
        holder = "another process"
        with suppress(OSError, UnicodeDecodeError):
            holder = self.path.read_text()[:80].strip() or holder
        return f"{self.path} is held by {holder} (waited {self.timeout:g} s). Wait until it has finished, or end it."
