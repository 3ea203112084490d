"""A log with blobs and a replay buffer, what they must still say after anything that befalls them. No mlx."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pytest
from builders import NO_SYNC, make_record

from draftloop.data.compaction import CompactedLog, compact_log
from draftloop.data.exchange import stored_bytes
from draftloop.data.joined_groups import PromptGroups
from draftloop.data.log import FailureLog
from draftloop.data.records import BlobRef, Record
from draftloop.data.removal import RecordChoice, RemovedRecords, remove_records
from draftloop.data.replay import ReplayBuffer
from draftloop.data.teacher_blobs import BlobFile
from draftloop.store.files import Files

TOPIC = "a question about the topic {}"


def blob_of(record_id: str) -> bytes:
    """The blob of a record: another one for each."""
    return f"blob of {int(record_id, 16)}, ".encode() * (int(record_id, 16) % 7 + 1)


def topic(number: int) -> str:
    """A prompt that is near to no other topic."""
    return TOPIC.format(chr(0x4E00 + number))


def append_while_it_copies(
    world: LogWorld, root: Path, numbers: Iterable[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From now on somebody else logs one of these before each blob that `world`, of the same `root`, reads."""
    other, read, added = LogWorld(root), world.blobs.read, iter(numbers)

    def append_first(place: BlobRef) -> bytes:
        for number in islice(added, 1):
            other.append([number])
        return read(place)

    monkeypatch.setattr(world.blobs, "read", append_first)


class LogWorld:
    """The files of one data directory that a compaction changes."""

    def __init__(self, root: Path, files: Files = NO_SYNC) -> None:
        self.log = FailureLog(root / "failures" / "failures.jsonl", files)
        self.blobs = BlobFile(root / "failures" / "teacher.bin", files)
        self.replay = ReplayBuffer(root / "replay", 1_000, files)

    def append(self, numbers: Iterable[int], **overrides: object) -> list[Record]:
        """Log a record with a blob for each number, in one go: number n is of topic n, and its id is n."""
        records = [make_record(**{"id": f"{n:032x}", "prompt": topic(n), **overrides}) for n in numbers]
        return self.log.extend(records, self.blobs, [blob_of(record.id) for record in records])

    def compact(self, needed: Iterable[int] = (), goal: int = 0) -> CompactedLog:
        """Compact; the records of these numbers are needed."""
        ids = {f"{n:032x}" for n in needed}
        return compact_log(self.log, self.blobs, self.replay, lambda: {"a test": ids}, goal)

    def remove(self, choice: RecordChoice) -> RemovedRecords:
        """Remove the chosen records."""
        return remove_records(self.log, self.blobs, self.replay, choice)

    def numbers(self) -> list[int]:
        """The numbers of all records, after each is found whole with its blob."""
        records = list(self.log.records())
        assert self.log.damage == []
        self.check_blobs(records)
        return [int(record.id, 16) for record in records]

    def check_blobs(self, records: Iterable[Record]) -> None:
        """Every record has the blob that was written for it."""
        for record in records:
            assert record.teacher is not None
            assert self.blobs.read(record.teacher) == blob_of(record.id)

    def size(self) -> int:
        """What the log takes, with blobs and prompts."""
        return stored_bytes(self.log, self.blobs).total


def fresh_groups(world: LogWorld) -> PromptGroups:
    """The prompt groups as another process learns them."""
    return FailureLog(world.log.path, NO_SYNC).groups()
