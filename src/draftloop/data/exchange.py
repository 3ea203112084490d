"""Put a shorter log in the place of the log: some records go, with their blobs, beside writers that append.

    log, replay  ->  survey: the bytes of every record, its blob, all prompts   no lock; the log is read once
                 ->  new files of prompts, of lines and of blobs                no lock; the log is read once more
                 ->  what was appended meanwhile, and the exchange              the lock of all writers
                 ->  the places in the replay buffer; the old blobs go

The exchange takes blobs, index and log, in this order, and all are on disk by then. Whoever is killed in between leaves
a whole state: a new file of blobs may hold some that nobody refers to, the index may say that lines were dropped that
are there still, and the log is the old one or the new one. The old blobs go last. One process at a time does this, and
nobody trains meanwhile: the caller holds the lock of trainings. Knows neither which records go nor why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import orjson

from ..errors import StoreError
from ..store.atomic import NewFile, remove_leftovers
from ..store.files import reading, storing
from ..store.sealed_lines import RecordError, dump, seal
from .log import FailureLog, LogLine
from .prompt_groups import near_keys, prompt_group
from .prompt_index import KnownPrompt
from .record_lines import from_body, opening_and_split_of
from .records import BlobRef, Split
from .replay import ReplayBuffer
from .teacher_blobs import FILE_BYTES, BlobError, BlobFile, NextBlobs


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """What the log takes on disk: its lines, the blobs of the teacher, and the index of prompts."""

    log: int
    teacher: int
    prompts: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.log + self.teacher + self.prompts


def stored_bytes(log: FailureLog, blobs: BlobFile) -> StoredBytes:
    """What a log takes on disk now."""
    lines = 0
    with suppress(FileNotFoundError):
        lines = log.path.stat().st_size
    return StoredBytes(lines, blobs.size, log.index.size)


@dataclass(frozen=True, slots=True)
class LoggedBytes:
    """One record of the log, in bytes.

    Attributes:
        id: None where it is no record of this draftloop's: nobody knows who needs it.
        group: of its prompt; empty where it has none that can be read.
        line: the most bytes that its line takes once its blob has moved.
        place: where its blob lies; None where it has none.
    """

    id: str | None
    group: str
    line: int
    place: BlobRef | None

    @property
    def blob(self) -> int:
        """Bytes of its blob; 0 where it has none."""
        return self.place.length if self.place else 0


@dataclass
class LogSurvey:
    """A log up to byte `end`.

    Attributes:
        records: in the order of the log.
        prompts: by prompt group, in the order in which they came; `index_bytes` is what they take in the index.
        replayed: the places that the replay buffer refers to.
    """

    end: int = 0
    index_bytes: int = 0
    records: list[LoggedBytes] = field(default_factory=list)
    prompts: dict[str, KnownPrompt] = field(default_factory=dict)
    replayed: list[BlobRef] = field(default_factory=list)

    def bytes_without(self, dropped: set[int]) -> StoredBytes:
        """What it would take without the records of these numbers."""
        kept = [record for number, record in enumerate(self.records) if number not in dropped]
        places = {record.place for record in kept if record.place} | set(self.replayed)
        return StoredBytes(sum(one.line for one in kept), sum(place.length for place in places), self.index_bytes)


def ignore_body(_number: int, _body: bytes) -> None:
    """Look at no record."""


def survey_log(
    log: FailureLog, blobs: BlobFile, replay: ReplayBuffer, look: Callable[[int, bytes], None] = ignore_body
) -> LogSurvey:
    """Read a log and the places that the replay buffer refers to.

    Args:
        log, blobs, replay: read, not changed.
        look: called with the number of every record, and with it as an unsealed JSON object.

    Raises:
        StoreError: a newer draftloop wrote there.
    """
    survey = LogSurvey(prompts={prompt.group: prompt for prompt in log.index.prompts()})
    digits = len(str((blobs.next_number + 1) * FILE_BYTES))

    def note(body: bytes, record_id: str | None, group: str, place: BlobRef | None) -> None:
        longer = 0 if place is None else max(0, digits - len(str(place.offset)))
        survey.records.append(LoggedBytes(record_id, group, len(seal(body)) + longer, place))

    for line in takewhile(lambda line: line.has_newline, log.lines()):  # a torn tail is mended by the next writer
        for body in line.bodies:
            look(len(survey.records), body)
            try:
                record = from_body(body)
                group = _note_prompt(survey.prompts, record.opening, record.split)
                note(body, record.id, group, record.teacher)
            except RecordError:
                with suppress(RecordError):  # its prompt may still be read, and is learnt by `FailureLog` too
                    _note_prompt(survey.prompts, *opening_and_split_of(body))
                note(body, None, "", _place(members_of(body)))
        survey.end = line.end
    survey.index_bytes = log.index.size_with(survey.prompts.values())
    survey.replayed = [record.teacher for record in replay.records() if record.teacher is not None]
    return survey


@contextmanager
def held_open(path: Path) -> Iterator[int | None]:
    """A descriptor of a file, None where there is none. While it is open, no other file gets the same inode."""
    descriptor = None
    with suppress(FileNotFoundError), reading(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def exchange_log(
    log: FailureLog,
    blobs: BlobFile,
    replay: ReplayBuffer,
    survey: LogSurvey,
    dropped: Collection[int],
    surveyed: int | None,
    forgotten: Collection[str] = (),
) -> LogCopy:
    """Put files without the dropped records in the place of the log's.

    Args:
        log, blobs, replay: changed.
        survey: of this log; what was appended since stays.
        dropped: the numbers of records.
        surveyed: a descriptor of the file that was read.
        forgotten: ids of records that the replay buffer loses; `survey.replayed` has no places of theirs.

    Raises:
        StoreError: the disk refused, or somebody replaced the log; nothing acknowledged is lost.
        LockedError: another process kept a lock.
    """
    with storing(log.path):
        remove_leftovers(log.path.parent, log.files)
        gone = {survey.records[number].group for number in dropped}
        known = (replace(one, dropped=one.dropped or one.group in gone) for one in survey.prompts.values())
        with (
            log.index.next_file(known) as prompts,
            NewFile(log.path.parent, log.files) as lines,
            blobs.next_file() as following,
        ):
            # 1. The blobs of the replay buffer, and what stays of the log.
            copy = LogCopy(lines, following, blobs)
            for place in survey.replayed:
                copy.moved(place)
            kept = (number for number in range(len(survey.records)) if number not in dropped)
            copy.add(takewhile(lambda line: line.end <= survey.end, log.lines()), set(kept))
            lines.sync()  # or writers would wait for it
            following.new.sync()

            # 2. What was appended meanwhile. Then all files are on disk, and the log is another one at one instant.
            with log.writing() as descriptor:
                _check_same(log, survey, surveyed, descriptor)
                copy.add(log.lines(survey.end), None)
                lines.settle()
                following.new.settle()
                if blobs.files():
                    blobs.publish(following)
                for damaged in copy.damaged:
                    log.set_aside(damaged)
                log.index.publish(prompts)
                lines.publish(log.path)

        # 3. Nobody refers to the old blobs any more, once the replay buffer does not.
        replay.move_blobs(copy.places, forgotten)
        blobs.remove_before(following.number)
    return copy


def _check_same(log: FailureLog, survey: LogSurvey, surveyed: int | None, descriptor: int) -> None:
    """Raise StoreError where the log is not the file that was surveyed, or lacks some of it."""
    now = os.fstat(descriptor)
    if now.st_size >= survey.end and (surveyed is None or os.path.samestat(os.fstat(surveyed), now)):
        return
    raise StoreError(
        f"{log.path} is not the file that was read before: somebody replaced it or cut it. Nothing was changed."
    )


class LogCopy:
    """Lines and blobs on their way to new files.

    Attributes:
        places: where a blob lies now, by where it lay; None where it cannot be had.
        damaged: lines that are not copied, but for whole records in them.
    """

    def __init__(self, lines: NewFile, following: NextBlobs, blobs: BlobFile) -> None:
        self.places: dict[BlobRef, BlobRef | None] = {}
        self.damaged: list[bytes] = []
        self._lines = lines
        self._following = following
        self._blobs = blobs

    @property
    def lost(self) -> int:
        """How many blobs cannot be had."""
        return sum(place is None for place in self.places.values())

    def add(self, lines: Iterable[LogLine], kept: set[int] | None) -> None:
        """Copy the records of these numbers, counted from 0; None is all of them."""
        number = 0
        for line in lines:
            if line.reason is not None:
                self.damaged.append(line.raw)
            for body in line.bodies:
                if kept is None or number in kept:
                    self._lines.write(seal(self._with_place(body)))
                number += 1

    def moved(self, place: BlobRef) -> BlobRef | None:
        """Copy the blob at `place`, once; returns where it will lie."""
        if place not in self.places:
            try:
                self.places[place] = self._following.add(self._blobs.read(place))
            except BlobError as error:
                if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                    raise  # the disk may give it another time
                self.places[place] = None
        return self.places[place]

    def _with_place(self, body: bytes) -> bytes:
        values = members_of(body)
        place = _place(values)
        if place is None:
            return body
        moved = self.moved(place)
        return dump({**values, "teacher": None if moved is None else asdict(moved)})


def members_of(body: bytes) -> dict[str, Any]:
    """The members of an unsealed object; none of what is no object, and stays as it is."""
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return values if isinstance(values, dict) else {}


def _place(values: Mapping[str, Any]) -> BlobRef | None:
    """The place of a record's blob. Members that a later draftloop may have beside these are not understood."""
    place = values.get("teacher")
    if not isinstance(place, dict) or place.keys() != {"offset", "length", "checksum"}:
        return None
    return BlobRef(**place)


def _note_prompt(prompts: dict[str, KnownPrompt], opening: str, split: Split) -> str:
    """Add a line to what is known of its prompt group; returns the group."""
    group = prompt_group(opening)
    known = prompts.get(group) or KnownPrompt(group, (), None)
    if known.keys is None:
        known = replace(known, keys=near_keys(opening))
    if split not in known.splits:
        known = replace(known, splits=(*known.splits, split))
    prompts[group] = known
    return group
