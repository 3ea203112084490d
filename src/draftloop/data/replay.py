"""The replay buffer: generations that keep the draft from forgetting what it does well. Knows no model and no training.

Records of the split `train` enter it: of every source the generations at or above its median acceptance, and the
examples of earlier trainings. Where these are more than `capacity`, every source keeps its share (largest remainders),
but a chatty one no more than the share that it may have of a training, as long as others fill the rest. Within a source
the records with the smallest hash of seed and id stay: a uniform reservoir sample that does not depend on the order of
arrival. `replay.jsonl` holds whole records as lines of the failure log, so the buffer outlives
the log. It is replaced atomically, and its damaged lines go to `replay.jsonl.broken`. Generations are read twice, one
at a time: however long the log is, at most `capacity` of each source are held in memory.

`drawable` says which of them a training may replay. All failures are trained on once per epoch, and in a first training
the buffer holds nothing but failures. To replay one protects nothing if the draft is learning its source just now. So a
failure of the running training is drawn only if the draft already does well in its source: acceptance at or above that
of all generations together. A record that the log lost, or that has no rejection, is drawn whatever its source.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from ..evaluation.estimator import log_probs, position_weights
from ..store.atomic import remove_leftovers, write_atomically
from ..store.files import FILES, Files, storing
from ..store.lock import Lock
from .log import Damage, FailureLog
from .record_lines import to_line
from .records import BlobRef, Record
from .source_share import seats_by_source

FILE = "replay.jsonl"
_ID_BYTES = 16  # of a rank, enough to tell ids apart


class ReplayBuffer:
    """The buffer under `directory` (`<data>/replay`). Making one touches nothing.

    Args:
        directory: where `replay.jsonl` lies; made at the first change.
        capacity: most generations kept.
        files: the seam for the operations that change something.
    """

    def __init__(self, directory: Path, capacity: int, files: Files = FILES) -> None:
        self.path = directory / FILE
        self.capacity = capacity
        self._files = files
        self._stored = FailureLog(self.path, files)
        self._lock = Lock(directory / ".lock", files=files)

    @property
    def damage(self) -> list[Damage]:
        """What the latest reading found damaged and left out."""
        return self._stored.damage

    @property
    def size(self) -> int:
        """In bytes, without the blobs that its records refer to."""
        return self.path.stat().st_size if self.path.exists() else 0

    def records(self) -> list[Record]:
        """What is kept, in the order of the ids."""
        return [record for record in self._stored.records() if record.split == "train"]

    def refresh(self, records: Callable[[], Iterable[Record]], seed: int, share: float = 1.0) -> list[Record]:
        """Admit of `records` what is `worth_keeping`; returns what is kept now. `share` as in `reservoir`.

        Raises:
            StoreError: not writable.
        """
        return self._admit(worth_keeping(records), seed, share)

    def remember(self, trained: Iterable[Record], seed: int, share: float = 1.0) -> list[Record]:
        """Admit the examples of a training; returns what is kept now. Args and errors as `refresh`."""
        return self._admit(trained, seed, share)

    def move_blobs(self, places: Mapping[BlobRef, BlobRef | None], forgotten: Collection[str] = ()) -> None:
        """Refer to blobs where they lie now; None is nowhere. Records of the ids `forgotten` go at the same instant.

        Raises:
            StoreError: not writable.
        """
        if not self.path.exists():
            return  # before a lock makes the directory
        with self._lock, storing(self.path):
            before = self.records()
            after = [
                replace(record, teacher=places.get(record.teacher, record.teacher)) if record.teacher else record
                for record in before
                if record.id not in forgotten
            ]
            if after != before:
                self._replace(after)

    def _replace(self, records: Iterable[Record]) -> None:
        if self.damage:
            self._stored.set_aside_damage()
        write_atomically(self.path, b"".join(map(to_line, records)), self._files)

    def _admit(self, newcomers: Iterable[Record], seed: int, share: float) -> list[Record]:
        with self._lock, storing(self.path):
            remove_leftovers(self.path.parent, self._files)
            before = self.records()
            fresh = (record for record in newcomers if record.split == "train")
            kept = reservoir(chain(before, fresh), self.capacity, seed, share)
            if kept != before or self.damage:
                self._replace(kept)
        return kept


def generation_acceptance(record: Record) -> float:
    """Mean acceptance of the emitted tokens under the record's own rule, in [0, 1]; it does not depend on K."""
    return float(_weights(record).mean())


def worth_keeping(records: Callable[[], Iterable[Record]]) -> Iterator[Record]:
    """Of every source of the split `train`, the generations at or above its median acceptance, in their order.

    Args:
        records: called twice, for the medians and then for the records; new ones are compared with these medians too.
    """

    def usable() -> Iterator[Record]:
        return (record for record in records() if record.split == "train" and record.target_output)

    acceptances: dict[_Source, array[float]] = defaultdict(lambda: array("d"))
    for record in usable():
        acceptances[_source(record)].append(generation_acceptance(record))
    medians = {source: float(np.median(values)) for source, values in acceptances.items()}
    return (record for record in usable() if generation_acceptance(record) >= medians.get(_source(record), 0.0))


def reservoir(records: Iterable[Record], capacity: int, seed: int, share: float = 1.0) -> list[Record]:
    """At most `capacity` of `records`, each once: every source in proportion, within it a seeded uniform sample.

    Of records with the same id the last one counts. No more than `capacity` of a source are held at a time. One source
    has at most `share` of the places (`source_share.seats_by_source`).

    Returns:
        They are in the order of their ids.
    """
    by_source: dict[_Source, _Lowest] = defaultdict(lambda: _Lowest(capacity))
    for record in records:
        by_source[_source(record)].add(record, _rank(record.id, seed))
    quotas = seats_by_source({source: lowest.count for source, lowest in by_source.items()}, capacity, share)
    kept = [record for source, lowest in by_source.items() for record in lowest.records(quotas[source])]
    return sorted(kept, key=lambda record: record.id)


class _Lowest:
    """The records of lowest rank in a stream, at most `most` of them; `count` counts all ids of the stream."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._ids: set[bytes] = set()
        self._ranks: list[bytes] = []  # of those held, sorted
        self._held: dict[bytes, Record] = {}  # by rank, which no two ids share

    @property
    def count(self) -> int:
        """Different ids."""
        return len(self._ids)

    def add(self, record: Record, rank: bytes) -> None:
        """Add a record; it replaces one with the same id."""
        self._ids.add(rank[:_ID_BYTES])
        if rank not in self._held:
            self._ranks.insert(bisect_left(self._ranks, rank), rank)
        self._held[rank] = record
        if len(self._ranks) > self._most:
            del self._held[self._ranks.pop()]

    def records(self, count: int) -> list[Record]:
        """The `count` lowest."""
        return [self._held[rank] for rank in self._ranks[:count]]


def drawable(kept: Iterable[Record], failures: Collection[Record], generations: Iterable[Record]) -> list[Record]:
    """The records of the buffer that protect something in a training on `failures` (see the top of this file).

    Args:
        kept: the buffer's records of the pair.
        failures: what the training trains on anyway.
        generations: all of the pair's `train` records, to tell which sources the draft does well in.
    """
    trained = {record.id for record in failures}
    strong = well_accepted_sources(generations)
    return [record for record in kept if record.id not in trained or record.source in strong]


def well_accepted_sources(generations: Iterable[Record]) -> set[str]:
    """Sources whose acceptance per position is at or above that of all generations together (ratios of sums)."""
    weights: dict[str, list[np.ndarray]] = defaultdict(list)
    for record in generations:
        if record.target_output:
            weights[record.source].append(_weights(record))
    means = {source: float(np.concatenate(parts).mean()) for source, parts in weights.items()}
    if not means:
        return set()
    overall = float(np.concatenate([part for parts in weights.values() for part in parts]).mean())
    return {source for source, mean in means.items() if mean >= overall - 1e-12}


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """One draw: train on the first `tokens` output tokens of a record."""

    record_id: str
    tokens: int


def replay_tokens(fresh_tokens: int, replay_ratio: float) -> int:
    """How many replayed tokens make `replay_ratio` of an epoch that has `fresh_tokens` others."""
    return round(fresh_tokens * replay_ratio / (1.0 - replay_ratio))


def draw_from_pool(lengths: Mapping[str, int], tokens: int, random: np.random.Generator) -> list[DrawnTokens]:
    """Exactly `tokens` supervised tokens from a pool.

    The pool is passed through in a random order, as often as needed, so no record comes twice more than another. The
    last draw is cut to fit.

    Args:
        lengths: supervised tokens of each record, by id.
        tokens: how many to draw.
        random: of this draw; the same draws the same.

    Returns:
        The draws; none when the pool is empty.
    """
    pool = sorted(record_id for record_id, length in lengths.items() if length > 0)
    drawn: list[DrawnTokens] = []
    while pool and tokens > 0:
        for index in random.permutation(len(pool)):
            if tokens <= 0:
                break
            taken = min(lengths[pool[index]], tokens)
            drawn.append(DrawnTokens(pool[index], taken))
            tokens -= taken
    return drawn


_Source = tuple[str, str, str]


def _source(record: Record) -> _Source:
    """A source of one pair: another pair's generations are other outputs."""
    return record.pair.target, record.pair.tokenizer, record.source


def _weights(record: Record) -> np.ndarray:
    return position_weights(log_probs(record.log_p), log_probs(record.log_q), record.rule)


def _rank(record_id: str, seed: int) -> bytes:
    return hashlib.sha256(f"replay:{seed}:{record_id}".encode()).digest()
