"""An append-only journal of small JSON objects in order, each sealed by a checksum. Knows nothing of what they mean.

A line that a crash tore stays where it is, and readers pass it over; the next entry begins on a line of its own.
Writers hold a lock of their own choosing, because the sequence of an entry is one more than the last one's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson

from .files import FILES, Files, reading, storing
from .sealed_lines import RecordError, dump, seal, unseal


class Journal:
    """The journal at `path`. Making one touches nothing; its directory is made at the first entry.

    Args:
        path: the file.
        files: the seam for the operations that change something.

    Attributes:
        damage: numbers of the lines, from 1, that the latest reading passed over.
    """

    def __init__(self, path: Path, files: Files = FILES) -> None:
        self.path = path
        self.damage: list[int] = []
        self._files = files

    def entries(self) -> list[dict[str, Any]]:
        """Everything that can be read, oldest first. Raises AccessDenied: this user may read none of it."""
        self.damage = []
        try:
            with reading(self.path):
                lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        entries = []
        for number, line in enumerate(lines, 1):
            try:
                entries += [orjson.loads(unseal(line))] if line else []
            except (RecordError, orjson.JSONDecodeError):
                self.damage.append(number)
        return entries

    def append(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Write an entry, durably, and return it with its `sequence`. Raises StoreError: the disk refused."""
        sequence = max((int(earlier.get("sequence", 0)) for earlier in self.entries()), default=0) + 1
        numbered = {"sequence": sequence, **entry}
        with storing(self.path):
            self._files.make_directory(self.path.parent)
            descriptor = self._files.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            try:
                size = os.fstat(descriptor).st_size
                torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                self._files.write_all(descriptor, (b"\n" if torn else b"") + seal(dump(numbered)))
                self._files.sync(descriptor, full=True)
            finally:
                os.close(descriptor)
            if size == 0:
                self._files.sync_directory(self.path.parent, full=True)
        return numbered
