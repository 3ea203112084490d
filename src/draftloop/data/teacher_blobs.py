"""Append-only files of blobs, read by place and checksum. Knows neither what they hold nor who refers to them.

A blob is acknowledged when `append` returns its place. Nobody refers to what a killed writer left half-written: it
stays, and the next blob comes after it.

Blobs are appended to the newest file, and an offset counts over all of them: file n begins at offset n * FILE_BYTES.
There is only file 0, `teacher.bin`, until a compaction copies the blobs that are still referred to into the next one,
`teacher-0001.bin` (`next_file`), and removes those before it. So a place never means another blob than it did.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path

from ..errors import StoreError
from ..store.atomic import NewFile
from ..store.files import FILES, Files, append_whole, reading, storing
from ..store.lock import Lock
from .records import BlobRef

FILE_BYTES = 1 << 40  # no file is as large


class BlobError(StoreError):
    """A blob that is not where it was written, or no longer what was written."""


class BlobFile:
    """The blobs in the file `path` and those that follow it. Making one touches nothing; `<name>.lock` lies beside it.

    A record that is logged later than its blob may find it gone, by a compaction in between; `FailureLog.extend` logs
    both at once.

    Args:
        path: the first file; it and its directory are made at the first append.
        files: the seam for the operations that change something.
        full_sync: outlive a power loss on macOS too, at the price of slow appends.
    """

    def __init__(self, path: Path, files: Files = FILES, full_sync: bool = False) -> None:
        self.path = path
        self._files = files
        self._full_sync = full_sync
        self._lock = Lock(path.with_name(f"{path.name}.lock"), files=files)

    def append(self, blob: bytes) -> BlobRef:
        """Write a blob, synced, and return its place: from then on a record may point there. Raises as `extend`."""
        (place,) = self.extend([blob])
        return place

    def extend(self, blobs: Iterable[bytes]) -> list[BlobRef]:
        """Write several in one go, synced once, and return their places.

        Raises:
            StoreError: the disk refused, and what was there before is unharmed.
            LockedError: another process kept the lock.
        """
        contents = list(blobs)
        if not contents:
            return []
        with self._lock, storing(self.path):
            number = max(self.files(), default=0)
            descriptor = self._files.open(self._file(number), os.O_RDWR | os.O_APPEND | os.O_CREAT)
            try:
                if os.fstat(descriptor).st_size == 0:
                    self._files.sync_directory(self.path.parent, self._full_sync)
                start = append_whole(descriptor, b"".join(contents), self._files, self._full_sync)
            finally:
                os.close(descriptor)
        starts = accumulate(map(len, contents), initial=number * FILE_BYTES + start)
        return [BlobRef(at, len(blob), checksum(blob)) for at, blob in zip(starts, contents, strict=False)]

    def read(self, place: BlobRef) -> bytes:
        """The blob that was written at `place`.

        Raises:
            AccessDenied: this user may not read the file.
            BlobError: it is missing, ends before the blob does, or holds something else there.
        """
        number, offset = divmod(place.offset, FILE_BYTES)
        path = self._file(number)
        try:
            with reading(path), path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < offset + place.length:
                    raise self._error(place, f"the file ends at byte {size:,}")
                blob = os.pread(file.fileno(), place.length, offset)
        except OSError as error:
            raise self._error(place, error.strerror or str(error)) from error
        if checksum(blob) != place.checksum:
            raise self._error(place, "its checksum does not match")
        return blob

    def files(self) -> dict[int, Path]:
        """The files that are there, by number."""
        named = re.compile(rf"{re.escape(self.path.stem)}(?:-(\d{{4,}}))?{re.escape(self.path.suffix)}")
        found = {path: named.fullmatch(path.name) for path in self.path.parent.glob(f"{self.path.stem}*")}
        return {int(match[1] or 0): path for path, match in found.items() if match}

    @property
    def next_number(self) -> int:
        """Of the file that a compaction would begin."""
        return max(self.files(), default=0) + 1

    @property
    def size(self) -> int:
        """Of all files, in bytes; one that is removed just now counts nothing."""
        total = 0
        for path in self.files().values():
            with suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    @contextmanager
    def next_file(self) -> Iterator[NextBlobs]:
        """The next file, for the one process that compacts; it is gone after the block unless it was published.

        Raises:
            OSError: what the system said.
        """
        with NewFile(self.path.parent, self._files) as new:
            yield NextBlobs(new, self.next_number)

    def publish(self, following: NextBlobs) -> None:
        """Append to `following` from now on; it is settled. Raises OSError: what the system said."""
        with self._lock:
            following.new.publish(self._file(following.number))

    def remove_before(self, number: int) -> None:
        """Remove the files before this one; nobody refers to them. Raises OSError: what the system said."""
        for earlier, path in self.files().items():
            if earlier < number:
                self._files.remove(path)

    def _file(self, number: int) -> Path:
        return self.path.with_stem(f"{self.path.stem}-{number:04d}") if number else self.path

    def _error(self, place: BlobRef, reason: str) -> BlobError:
        path, offset = self._file(place.offset // FILE_BYTES), place.offset % FILE_BYTES
        return BlobError(
            f"{path}: the {place.length:,} bytes from byte {offset:,} cannot be had: {reason}. "
            "Collect the prompt again with --fresh to have them back."
        )


class NextBlobs:
    """The next file while a compaction fills it; nobody else knows it until it is published."""

    def __init__(self, new: NewFile, number: int) -> None:
        self.new = new
        self.number = number

    def add(self, blob: bytes) -> BlobRef:
        """Copy a blob; returns the place that it will have. Raises OSError: what the system said."""
        place = BlobRef(self.number * FILE_BYTES + self.new.size, len(blob), checksum(blob))
        self.new.write(blob)
        return place


def checksum(blob: bytes) -> str:
    """The first 16 hex digits of the sha256."""
    return hashlib.sha256(blob).hexdigest()[:16]
