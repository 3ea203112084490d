"""An append-only file of blobs, read by place and checksum. Knows neither what they hold nor who refers to them.

A blob is acknowledged when `append` returns its place. Nobody refers to what a killed writer left half-written: it
stays, and the next blob comes after it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

from ..errors import StoreError
from ..store.files import FILES, Files, append_whole, reading, storing
from ..store.lock import Lock
from .records import BlobRef


class BlobError(StoreError):
    """A blob that is not where it was written, or no longer what was written."""


class BlobFile:
    """The blobs in the file `path`. Making one touches nothing; `<name>.lock` lies beside it.

    Args:
        path: the file; it and its directory are made at the first append.
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
            descriptor = self._files.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            try:
                if os.fstat(descriptor).st_size == 0:
                    self._files.sync_directory(self.path.parent, self._full_sync)
                start = append_whole(descriptor, b"".join(contents), self._files, self._full_sync)
            finally:
                os.close(descriptor)
        starts = accumulate(map(len, contents), initial=start)
        return [BlobRef(at, len(blob), checksum(blob)) for at, blob in zip(starts, contents, strict=False)]

    def read(self, place: BlobRef) -> bytes:
        """The blob that was written at `place`.

        Raises:
            AccessDenied: this user may not read the file.
            BlobError: it is missing, ends before the blob does, or holds something else there.
        """
        try:
            with reading(self.path), self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < place.offset + place.length:
                    raise self._error(place, f"the file ends at byte {size:,}")
                blob = os.pread(file.fileno(), place.length, place.offset)
        except OSError as error:
            raise self._error(place, error.strerror or str(error)) from error
        if checksum(blob) != place.checksum:
            raise self._error(place, "its checksum does not match")
        return blob

    def _error(self, place: BlobRef, reason: str) -> BlobError:
        return BlobError(
            f"{self.path}: the {place.length:,} bytes from byte {place.offset:,} cannot be had: {reason}. "
            "Collect the prompt again with --fresh to have them back."
        )


def checksum(blob: bytes) -> str:
    """The first 16 hex digits of the sha256."""
    return hashlib.sha256(blob).hexdigest()[:16]
