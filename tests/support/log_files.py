"""Failure logs for the tests of their faults: filled, read back whole, put back as they were. No mlx."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from builders import NO_SYNC, make_record

from draftloop.data.log import FailureLog
from draftloop.data.records import Record
from draftloop.data.teacher_top_k import decode_top_k
from draftloop.data_directory import DataDirectory


def filled(path: Path, count: int, **overrides: Any) -> list[Record]:
    """So many records of as many prompt groups, logged."""
    log = FailureLog(path, NO_SYNC)
    return [log.append(make_record(prompt=f"prompt {chr(0x4E00 + i)}", **overrides)) for i in range(count)]


def read(path: Path) -> list[Record]:
    """All records of a log without a damaged line."""
    log = FailureLog(path)
    records = list(log.records())
    assert log.damage == []
    return records


def read_captured(data: Path) -> list[Record]:
    """All records of a data directory without a damaged line, each with what the teacher gave at every token."""
    directory = DataDirectory(data)
    records = read(directory.log.path)
    for record in records:
        assert record.teacher is not None
        assert len(decode_top_k(directory.blobs.read(record.teacher))) == len(record.target_output)
    return records


def broken(path: Path) -> Path:
    """Where torn tails of a log go."""
    return path.with_name(f"{path.name}.broken")


def put(path: Path, data: bytes) -> None:
    """Make the file anew: ext4 flushes a file that is cut to nothing and written again, which is slow."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow past `size` bytes: what is written beyond finds a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
