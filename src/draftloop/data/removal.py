"""Remove records that somebody chose from the log, the replay buffer and the blobs. Knows no registry and no training.

Unlike a compaction it asks nobody who needs a record. Prompts keep their splits: the prompt index has hashes of them,
and no text. Whoever is killed in between does it again: log and replay buffer are the old ones or the new ones, and
files of blobs that nobody refers to any more go when it is done again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..store.files import storing
from .exchange import LogSurvey, StoredBytes, exchange_log, held_open, members_of, stored_bytes, survey_log
from .log import FailureLog
from .records import Record
from .replay import ReplayBuffer
from .teacher_blobs import FILE_BYTES, BlobFile


@dataclass(frozen=True, slots=True)
class RecordChoice:
    """Which records are chosen: those that fit all that is given, at least one thing.

    Attributes:
        ids: of the records; empty is any.
        source: the name of a source; None is any.
        before: unix seconds; records that were logged earlier.
        match: to be found in the prompt's text, of a chat in that of all messages.
    """

    ids: frozenset[str] = frozenset()
    source: str | None = None
    before: float | None = None
    match: re.Pattern[str] | None = None

    def fits(self, members: Mapping[str, Any]) -> bool:
        """Whether a record is chosen, by the members of its JSON object; one of a foreign type fits nothing."""
        time, prompt = members.get("time"), members.get("prompt")
        return (
            (not self.ids or members.get("id") in self.ids)
            and (self.source is None or members.get("source") == self.source)
            and (self.before is None or (isinstance(time, int | float) and time < self.before))
            and (self.match is None or (isinstance(prompt, str) and self.match.search(prompt) is not None))
        )

    def fits_record(self, record: Record) -> bool:
        """`fits` of a record."""
        return self.fits({"id": record.id, "source": record.source, "time": record.time, "prompt": record.prompt})


@dataclass
class ChosenRecords:
    """The chosen records of a log and a replay buffer.

    Attributes:
        survey: of the log, and of what stays of the replay buffer.
        numbers: of those in the log.
        ids: of all of them; replayed: of those in the replay buffer.
        sources: how many of the log's each source has.
    """

    survey: LogSurvey = field(default_factory=LogSurvey)
    numbers: set[int] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    replayed: set[str] = field(default_factory=set)
    sources: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class RemovedRecords:
    """What a removal did.

    Attributes:
        before, after: what the log took, and takes.
        kept, removed: records of the log.
        replayed: records that the replay buffer lost.
        sources: how many of the log's each source lost.
        ids: of all that went.
    """

    before: StoredBytes
    after: StoredBytes
    kept: int
    removed: int
    replayed: int
    sources: dict[str, int]
    ids: frozenset[str]


def choose_records(log: FailureLog, blobs: BlobFile, replay: ReplayBuffer, choice: RecordChoice) -> ChosenRecords:
    """Find the chosen records; nothing is changed. Raises StoreError: a newer draftloop wrote there."""
    chosen = ChosenRecords()

    def look(number: int, body: bytes) -> None:
        members = members_of(body)
        if choice.fits(members):
            chosen.numbers.add(number)
            chosen.ids.add(str(members.get("id")))
            chosen.sources[str(members.get("source"))] += 1

    chosen.survey = survey_log(log, blobs, replay, look)
    kept = []
    for record in replay.records():
        if choice.fits_record(record):
            chosen.ids.add(record.id)
            chosen.replayed.add(record.id)
        elif record.teacher is not None:
            kept.append(record.teacher)
    chosen.survey.replayed = kept
    return chosen


def removal_of(log: FailureLog, blobs: BlobFile, chosen: ChosenRecords) -> RemovedRecords:
    """What `remove_records` would do."""
    return _removed(chosen, stored_bytes(log, blobs), chosen.survey.bytes_without(chosen.numbers))


def remove_records(log: FailureLog, blobs: BlobFile, replay: ReplayBuffer, choice: RecordChoice) -> RemovedRecords:
    """Remove the chosen records. What is logged while it works stays.

    Args:
        log, blobs, replay: what is changed. The caller holds the lock of trainings.
        choice: which records.

    Raises:
        StoreError: the disk refused, or a newer draftloop wrote there; nothing else than the chosen is lost.
        LockedError: another process kept a lock.
    """
    before = stored_bytes(log, blobs)
    with held_open(log.path) as surveyed:
        chosen = choose_records(log, blobs, replay, choice)
        if chosen.ids:
            exchange_log(log, blobs, replay, chosen.survey, chosen.numbers, surveyed, chosen.replayed)
        else:
            _remove_unreferenced(blobs, chosen.survey)
    return _removed(chosen, before, stored_bytes(log, blobs))


def _remove_unreferenced(blobs: BlobFile, survey: LogSurvey) -> None:
    """Remove what a kill left of an exchange: files before the first that is referred to, but never the newest."""
    places = [*(record.place for record in survey.records if record.place), *survey.replayed]
    first = min((place.offset // FILE_BYTES for place in places), default=None)
    with storing(blobs.path):
        newest = blobs.next_number - 1
        blobs.remove_before(newest if first is None else min(first, newest))


def _removed(chosen: ChosenRecords, before: StoredBytes, after: StoredBytes) -> RemovedRecords:
    count, removed = len(chosen.survey.records), len(chosen.numbers)
    return RemovedRecords(
        before, after, count - removed, removed, len(chosen.replayed), dict(chosen.sources), frozenset(chosen.ids)
    )
