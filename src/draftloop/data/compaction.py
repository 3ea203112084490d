"""Compact the log and its blobs: the oldest records that nobody needs go, beside writers that append.

    survey   the bytes of every record (`data.exchange`)
    needed   asked after that, so it knows of every record that may be dropped   the caller's
    choice   the oldest that are not needed, down to a goal                      pure
    exchange

Knows no registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .exchange import LogSurvey, StoredBytes, exchange_log, held_open, stored_bytes, survey_log
from .log import FailureLog
from .replay import ReplayBuffer
from .teacher_blobs import BlobFile

REPLAY = "probabilities of the replay buffer"


@dataclass(frozen=True, slots=True)
class CompactedLog:
    """What a compaction did.

    Attributes:
        before, after: what the log took, and takes.
        kept, dropped: records.
        needed: bytes of the records that had to stay, by what needs them.
        damaged_lines: that were moved to the `.broken` file; whole records in them stayed.
        lost_blobs: of kept records whose blob was damaged or gone; these have none now.
    """

    before: StoredBytes
    after: StoredBytes
    kept: int
    dropped: int
    needed: dict[str, int]
    damaged_lines: int = 0
    lost_blobs: int = 0


def plan_compaction(
    log: FailureLog, blobs: BlobFile, replay: ReplayBuffer, needed: Callable[[], Mapping[str, set[str]]], goal: int
) -> CompactedLog:
    """What `compact_log` would do; nothing is changed, no lock is taken. Args and errors as there."""
    before, survey = stored_bytes(log, blobs), survey_log(log, blobs, replay)
    staying = needed()
    dropped = choose_oldest(survey, staying, goal)
    after = survey.bytes_without(dropped)
    if after.total >= before.total:
        return _nothing(survey, before, staying)
    return _result(survey, dropped, before, after, staying)


def compact_log(
    log: FailureLog, blobs: BlobFile, replay: ReplayBuffer, needed: Callable[[], Mapping[str, set[str]]], goal: int
) -> CompactedLog:
    """Drop the oldest records that are not needed, with their blobs, until no more than `goal` bytes are left.

    Where that would free nothing, nothing is written.

    Args:
        log, blobs: what is compacted.
        replay: refers to blobs too; it keeps all of its records.
        needed: gives the ids of records that stay, by what needs them. It is called after the last record that may be
            dropped was read: what is appended later stays, needed or not.
        goal: in bytes; where what is needed takes more, all others go.

    Raises:
        StoreError: the disk refused, or a newer draftloop wrote there; nothing acknowledged is lost.
        LockedError: another process kept a lock.
    """
    before = stored_bytes(log, blobs)
    with held_open(log.path) as surveyed:
        survey = survey_log(log, blobs, replay)
        staying = needed()
        dropped = choose_oldest(survey, staying, goal)
        if survey.bytes_without(dropped).total >= before.total:
            return _nothing(survey, before, staying)
        copy = exchange_log(log, blobs, replay, survey, dropped, surveyed)
    after = stored_bytes(log, blobs)
    return _result(survey, dropped, before, after, staying, len(copy.damaged), copy.lost)


def choose_oldest(survey: LogSurvey, needed: Mapping[str, set[str]], goal: int) -> set[int]:
    """The numbers of the records to drop: the oldest that are not needed, until no more than `goal` bytes are left.

    Args:
        survey: of the log.
        needed: ids of records that stay, by what needs them.
        goal: in bytes; where what is needed takes more, all others go.
    """
    staying, replayed = set().union(*needed.values()), set(survey.replayed)
    dropped, left = set[int](), survey.bytes_without(set()).total
    for number, record in enumerate(survey.records):
        if left <= goal:
            break
        if record.id is not None and record.id not in staying:
            dropped.add(number)
            left -= record.line + (0 if record.place in replayed else record.blob)
    return dropped


def bytes_needed(survey: LogSurvey, needed: Mapping[str, set[str]]) -> dict[str, int]:
    """Bytes of the records that stay, by the first thing that needs each; then blobs of the replay buffer alone."""
    taken, others = dict.fromkeys(needed, 0), set(survey.replayed)
    for record in survey.records:
        why = next((why for why, ids in needed.items() if record.id in ids), None)
        if why is not None:
            taken[why] += record.line + record.blob
            others -= {record.place}
    taken[REPLAY] = sum(place.length for place in others)
    return {why: size for why, size in taken.items() if size}


def _nothing(survey: LogSurvey, before: StoredBytes, needed: Mapping[str, set[str]]) -> CompactedLog:
    return _result(survey, set(), before, before, needed)


def _result(
    survey: LogSurvey,
    dropped: set[int],
    before: StoredBytes,
    after: StoredBytes,
    needed: Mapping[str, set[str]],
    damaged_lines: int = 0,
    lost_blobs: int = 0,
) -> CompactedLog:
    kept = len(survey.records) - len(dropped)
    return CompactedLog(before, after, kept, len(dropped), bytes_needed(survey, needed), damaged_lines, lost_blobs)
