"""The failure log: records are appended, never changed, and read back lazily. Knows no model and no training.

An append is one `os.write` on an O_APPEND descriptor, under a lock that is held for that append alone, so several
processes may write. A record is acknowledged when `append` returns: no crash of process or kernel loses it then.

A compaction (`compaction.compact_log`) puts a shorter file in its place, under the same lock. Who is reading reads the
old file to its end. Whoever knows the prompt groups of the old one learns them anew, from `<name>.prompts`, which has
the prompts of the lines that are gone, and from the new file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from ..store.files import FILES, Files, append_whole, reading, storing
from ..store.lock import Lock
from ..store.sealed_lines import RecordError, unseal
from .joined_groups import PromptGroups
from .prompt_index import PromptIndex
from .record_lines import from_body, opening_and_split_of, source_of, split_of, to_line, whole_records
from .records import Record, resume_key
from .teacher_blobs import BlobFile

_PIECE = 1 << 16  # bytes of a damaged line that are read at a time


@dataclass(frozen=True, slots=True)
class Damage:
    """A line that is no whole record. `line_number` counts from 1, `offset` is in bytes."""

    line_number: int
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of the file: its unsealed record, or the reason why it is damaged and what whole records lie in it.

    `raw` has its bytes without the newline.
    """

    offset: int
    end: int
    raw: bytes
    bodies: tuple[bytes, ...]
    reason: str | None
    has_newline: bool


class FailureLog:
    """The append-only log at `path`. Making one touches nothing; `<name>.lock`, `.broken`, `.prompts` lie beside it.

    Many processes may have one of the same path. One thread at a time uses an object.

    Args:
        path: the log; it and its directory are made at the first append.
        files: the seam for the operations that change something.
        full_sync: appends survive a power loss on macOS too, and are slow.
        add_trained_groups: adds to fresh prompt groups what was trained on, whether the log still has it or not.

    Attributes:
        index: the prompts of lines that a compaction dropped.
        damage: what the latest reading by `records` found damaged so far.
        near_two_splits: how many records it left out so far, near prompts of another split.
    """

    def __init__(
        self,
        path: Path,
        files: Files = FILES,
        full_sync: bool = False,
        add_trained_groups: Callable[[PromptGroups], None] = lambda _: None,
    ) -> None:
        self.path = path
        self._add_trained_groups = add_trained_groups
        self.damage: list[Damage] = []
        self.near_two_splits = 0
        self.files = files
        self._full_sync = full_sync
        self._lock = Lock(path.with_name(f"{path.name}.lock"), files=files)
        self.index = PromptIndex(path.with_name(f"{path.name}.prompts"), files)
        self._begin_anew()

    def append(self, record: Record) -> Record:
        """Write `record` and return it, with the split of its prompt group in place of the one it came with.

        Raises:
            RecordError: the record contradicts itself; nothing was written.
            StoreError: the disk refused, and what was there before is unharmed; or a newer draftloop wrote to this log.
            LockedError: another process kept the lock.
        """
        (placed,) = self.extend([record])
        return placed

    def extend(
        self, records: Iterable[Record], blobs: BlobFile | None = None, contents: Iterable[bytes | None] = ()
    ) -> list[Record]:
        """Write several in one go, synced once, and return them: all are acknowledged, or none is. Raises as `append`.

        After a crash some of them may be there, in their order, and the last one torn.

        Args:
            records: whose split, and with a blob whose `teacher`, is replaced.
            blobs: where their blobs go, before the records that point there. No compaction comes in between.
            contents: of the blob of each record, None where it has none.
        """
        fresh = list(records)
        if not fresh:
            return []
        with self.writing() as descriptor:
            if blobs is not None:
                fresh = _with_blobs(fresh, blobs, list(contents))
            splits = self._groups.splits_for(record.opening for record in fresh)
            placed = [replace(record, split=split) for record, split in zip(fresh, splits, strict=True)]
            lines = b"".join(to_line(record) for record in placed)
            start = append_whole(descriptor, lines, self.files, self._full_sync)  # a torn tail is mended by the next
            if start == self._known:  # else somebody wrote who takes no lock, and the next append reads it all
                self._known += len(lines)
                for record in placed:
                    self._groups.learn(record.opening, record.split)
        return placed

    def repair(self) -> None:
        """Do what every append does first: move a torn tail to `<name>.broken`. Raises as `append` does."""
        with self.writing():
            pass

    def set_aside_damage(self) -> None:
        """Copy the lines that the latest reading found damaged to `<name>.broken`, for whoever writes the file anew.

        The caller lets nobody write meanwhile. Raises OSError: what the system said.
        """
        with self.path.open("rb") as file:
            for offset in dict.fromkeys(damage.offset for damage in self.damage):
                file.seek(offset)
                self.set_aside(file.readline().removesuffix(b"\n"))

    def records(self, splits: Container[str] | None = None) -> Iterator[Record]:
        """The records in file order, one at a time; those of other splits than `splits` are not even decoded.

        Where `splits` are given, what is near to a prompt of another split is left out (`groups`).
        Writers may append meanwhile: a line is read whole or not yet. After a compaction it is the old file's lines.
        Damaged lines go to `damage`, the rest is read.

        Raises:
            StoreError: a newer draftloop wrote to this log.
        """
        damage = self.damage = []
        self.near_two_splits = 0
        groups = None if splits is None else self.groups()
        for number, line in enumerate(self.lines(), start=1):
            if line.reason is not None:
                damage.append(Damage(number, line.offset, line.reason))
            for body in line.bodies:
                if splits is not None and split_of(body) not in splits:
                    continue
                try:
                    record = from_body(body)
                except RecordError as error:
                    damage.append(Damage(number, line.offset, str(error)))
                    continue
                if groups is not None and groups.in_two_splits(record):
                    self.near_two_splits += 1
                    continue
                yield record

    def groups(self) -> PromptGroups:
        """The prompt groups of all whole lines so far, near-duplicates joined; it learns on as the log is read and
        written. Nothing is written for it.

        Raises:
            StoreError: a newer draftloop wrote to this log.
        """
        try:
            self._read_on()
        except FileNotFoundError:
            self._begin_anew()
            self._learn_what_is_gone()
        return self._groups

    def resume_keys(self) -> dict[str, int | None]:
        """The `resume_key` of every record, and the most tokens after which its output was cut; None where it ended.

        It need not be collected again under a limit that would cut it no later. What was cancelled was cut; records
        that a compaction dropped are collected again.
        """
        keys: dict[str, int | None] = {}
        for record in self.records():
            key, cut = resume_key(record), record.is_cut
            before = keys.get(key, 0)
            keys[key] = max(before, len(record.target_output)) if cut and before is not None else None
        return keys

    def sources(self) -> set[str]:
        """The names of the sources of all whole lines. Raises as `groups`."""
        bodies = (body for line in self.lines() for body in line.bodies)
        return {source for body in bodies if (source := source_of(body)) is not None}

    # Reading

    def lines(self, start: int = 0) -> Iterator[LogLine]:
        """The lines from byte `start` on, of the file that is there when the first one is read; none if none is."""
        try:
            with reading(self.path), self.path.open("rb") as file:
                yield from _lines(file, start)
        except FileNotFoundError:
            return

    # Writing

    @contextmanager
    def writing(self) -> Iterator[int]:
        """A descriptor under the lock of all writers, with the tail whole and everybody's records known.

        Raises as `append`.
        """
        with storing(self.path), self._locked():
            descriptor = self.files.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            try:
                # 1. Learn what others wrote since.
                if os.fstat(descriptor).st_size == 0:
                    self.files.sync_directory(self.path.parent)
                self._read_on()
                # 2. Mend what a crash left torn.
                if os.fstat(descriptor).st_size > self._known:
                    self._mend_tail(descriptor)
                    self._read_on()
                yield descriptor
            finally:
                os.close(descriptor)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock of all writers, who do not wait for a whole log to be read: only its latest lines may be unknown."""
        while True:
            with suppress(FileNotFoundError):
                self._read_on()
            with self._lock:
                if not self._is_another():  # else it was compacted while this one waited
                    yield
                    return

    def _is_another(self) -> bool:
        """Whether `_read_on` would begin anew."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return False
        return (status.st_ino, self.index.compactions()) != self._identity or status.st_size < self._known

    def _begin_anew(self) -> None:
        self._identity = 0, 0  # inode and compactions: an inode may come again after two of them
        self._known = 0  # the lines before this offset are in _groups
        self._groups = PromptGroups()

    def _read_on(self) -> None:
        """Learn what was appended since; of another file, or one that was cut, all of it.

        The index is looked at after the file is opened: one that is newer than the file says nothing wrong.
        """
        with reading(self.path), self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            identity = status.st_ino, self.index.compactions()
            if identity != self._identity or status.st_size < self._known:
                self._begin_anew()
                self._learn_what_is_gone()
                self._identity = identity
            for line in _lines(file, self._known):
                if not line.has_newline:
                    return
                for body in line.bodies:
                    with suppress(RecordError):
                        self._groups.learn(*opening_and_split_of(body))
                self._known = line.end

    def _learn_what_is_gone(self) -> None:
        """What was trained on, and the prompts of lines that were dropped."""
        self._add_trained_groups(self._groups)
        for prompt in self.index.prompts():
            self._groups.learn_known(prompt)

    def _mend_tail(self, descriptor: int) -> None:
        """Keep a whole record that only lacks its newline; move every other byte to `<name>.broken`."""
        tail = os.pread(descriptor, os.fstat(descriptor).st_size - self._known, self._known)
        start, whole = next(whole_records(tail), (0, 0))
        whole = whole if start == 0 else 0
        if tail[whole:]:
            self.set_aside(tail[whole:])
            self.files.truncate(descriptor, self._known + whole)
        if whole:
            self.files.write_all(descriptor, b"\n")
        self.files.sync(descriptor, self._full_sync)

    def set_aside(self, torn: bytes) -> None:
        """Add damaged bytes to `<name>.broken`, under the lock of all writers. Raises OSError: what the system said."""
        broken = self.path.with_name(f"{self.path.name}.broken")
        descriptor = self.files.open(broken, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            self.files.write_all(descriptor, torn + b"\n")
            self.files.sync(descriptor, self._full_sync)
        finally:
            os.close(descriptor)
        self.files.sync_directory(broken.parent)


def _with_blobs(records: list[Record], blobs: BlobFile, contents: list[bytes | None]) -> list[Record]:
    """The records with the places of their blobs, which are on disk by then."""
    places = iter(blobs.extend(content for content in contents if content is not None))
    return [
        record if content is None else replace(record, teacher=next(places))
        for record, content in zip(records, contents, strict=True)
    ]


def _lines(file: BinaryIO, start: int) -> Iterator[LogLine]:
    file.seek(start)
    while line := _examine(file.readline(), start):
        if line.reason is not None:
            # What looked damaged may be half a torn tail, half what a writer has put in its place since.
            line = _examine(_line_on_disk(file, start), start)
            if line is None:
                return
            file.seek(line.end)
        yield line
        start = line.end


def _line_on_disk(file: BinaryIO, start: int) -> bytes:
    """The line from byte `start` on, past what is buffered; by its descriptor, for the path may be another file's."""
    raw = b""
    while more := os.pread(file.fileno(), _PIECE, start + len(raw)):
        raw += more
        if b"\n" in more:
            return raw[: raw.index(b"\n") + 1]
    return raw


def _examine(raw: bytes, offset: int) -> LogLine | None:
    """What one `readline` gave; None when it is not finished yet."""
    end, has_newline, text = offset + len(raw), raw.endswith(b"\n"), raw.removesuffix(b"\n")
    try:
        body = unseal(raw)
    except RecordError as error:
        bodies = tuple(unseal(raw[start:stop]) for start, stop in whole_records(raw))
        damaged = has_newline or bodies  # a whole record and something else than a newline: no write does that
        return LogLine(offset, end, text, bodies, str(error), has_newline) if damaged else None
    return LogLine(offset, end, text, (body,), None, has_newline) if has_newline else None
