"""`Files` is the seam for every file operation that changes something. Knows nothing of what is written.

A fault test subclasses it, and fails or kills at the n-th call. Nothing else in the store, the registry and the trainer
changes the disk, except lock files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import AccessDenied, StoreError

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
_NO_FULL_SYNC = frozenset({errno.ENOTSUP, errno.EINVAL, errno.ENOTTY})  # said by drives over a network


class Files:
    """The real operations. Files are made 0600 and directories 0700: prompts are people's."""

    def make_directory(self, path: Path, new: bool = False) -> None:
        """Make `path` and its missing parents, each one durably. Raises FileExistsError: `new`, and it is there."""
        if path.is_dir() and not new:
            return
        self.make_directory(path.parent)
        path.mkdir(mode=DIRECTORY_MODE, exist_ok=not new)
        self.sync_directory(path.parent)

    def open(self, path: Path, flags: int) -> int:
        """A descriptor of `path`; the caller closes it."""
        return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)

    def write(self, descriptor: int, data: bytes) -> int:
        """One write. Returns how many bytes it took, which a full disk makes fewer than asked."""
        return os.write(descriptor, data)

    def write_all(self, descriptor: int, data: bytes) -> None:
        """Write until nothing is left."""
        left = memoryview(data)
        while left:
            left = left[self.write(descriptor, bytes(left)) :]

    def produce(self, path: Path, write: Callable[[str], None]) -> None:
        """Let a library write `path` by itself: `write` gets its name.

        Raises:
            OSError: it could not be written; in place of the RuntimeError by which MLX says so.
        """
        try:
            write(str(path))
        except RuntimeError as error:
            raise OSError(str(error).rstrip(".")) from error

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut the file to `size` bytes."""
        os.ftruncate(descriptor, size)

    def sync(self, descriptor: int, full: bool = False) -> None:
        """Hand the file to the disk. On macOS only `full` empties the drive's own cache too; on Linux fsync does."""
        full_sync = getattr(fcntl, "F_FULLFSYNC", None)
        if full and full_sync is not None:
            try:
                fcntl.fcntl(descriptor, full_sync)
            except OSError as error:
                if error.errno not in _NO_FULL_SYNC:
                    raise
            else:
                return
        os.fsync(descriptor)

    def sync_directory(self, path: Path, full: bool = False) -> None:
        """Make the names in a directory durable; `full` as in `sync`."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.sync(descriptor, full)
        finally:
            os.close(descriptor)

    def make_private(self, path: Path) -> None:
        """Give a file or directory that somebody else made the mode it would have had here."""
        path.chmod(DIRECTORY_MODE if path.is_dir() else FILE_MODE)

    def rename(self, source: Path, target: Path) -> None:
        """Move `source` to `target` at one instant, in place of a file that is there."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Remove a file or a whole directory; one that is gone already is as good."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


FILES = Files()


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Report an operating system's refusal to write `path` as a StoreError that says what still holds."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} could not be written: {error.strerror or error}. What was acknowledged before is unharmed; "
            "see that the disk has room and may be written to, then run the command again."
        ) from error


def access_denied(error: PermissionError, path: Path) -> AccessDenied:
    """The system's refusal to let this user read `path`, in words that call nothing damaged."""
    return AccessDenied(
        f"permission denied: {os.fsdecode(error.filename or path)}. Nothing is damaged as far as anybody can see: "
        "run as the user whom it belongs to, or give yourself the right to it (`ls -l`, chmod, chown)."
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Report that this user may not read `path` as AccessDenied, before anybody takes it for damage."""
    try:
        yield
    except PermissionError as error:
        raise access_denied(error, path) from None


def check_readable(path: Path) -> None:
    """Raise AccessDenied where this user may not read the file `path`; whatever else is wrong with it shows later."""
    with suppress(OSError), reading(path), path.open("rb"):
        pass


def append_whole(descriptor: int, data: bytes, files: Files = FILES, full: bool = False) -> int:
    """Add `data` to the end of a file by one write, and sync it; failing that, cut the file back to what it was.

    Args:
        descriptor: opened with O_APPEND; the caller holds the lock of all writers.
        data: all of it.
        files: the seam.
        full: as in `Files.sync`.

    Returns:
        Where it begins, in bytes.

    Raises:
        OSError: what the system said; a tail of `data` is left only if even the cut failed.
    """
    size = os.fstat(descriptor).st_size
    try:
        written = files.write(descriptor, data)
        if written != len(data):
            raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes found room")
        files.sync(descriptor, full)
    except OSError:
        with suppress(OSError):
            files.truncate(descriptor, size)
        raise
    return size
