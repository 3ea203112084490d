"""What the target says at supervised positions: asked live, read from the log, or only its tokens. Never trained.

For a batch with M positions all three give p (M, S) and the ids that its columns stand for:
  live    the target reads each record once: n positions -> logits (n, V) -> p (n, W) under the record's sampler, or as
          at temperature 1 where the record is greedy; kept in float32 where all fit into the memory allowed, else in
          float16; where a large vocabulary does not fit so either, the likeliest ids and one bucket for the rest; what
          still does not fit is computed at each use;
  logged  the k likeliest ids that the collector kept, and one bucket for the rest: S = k + 1. No target is needed;
  none    all mass on the token that was emitted: S = 2.
Every record is read alone and rounded alike whether it is kept or not, so p never depends on the order of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from ..data.records import Sampler
from ..data.teacher_top_k import TopK
from ..decoding.sampling_filters import sampling_log_probs
from ..decoding.top_k import top_k_tokens
from ..runtime.memory import MEGABYTE
from .batches import Batch
from .dataset.examples import Example
from .forward import Forward, positions_at_a_time
from .losses import TeacherProbs

LIKELIEST = 128  # ids kept of a distribution where whole ones do not fit
SOFT = Sampler(temperature=1.0, top_p=1.0, min_p=0.0, top_k=0, seed=0)
"""What greedy text is taught under: which other ids the target weighed says more than the one it took."""
_NOISE = 1e-6  # of a sum in float32: a smaller tail is none, or it would weigh what the draft gives to no id at all


@dataclass(frozen=True)
class TeacherParts:
    """What a teacher says at M positions, in parts one after the other: a large vocabulary is never put together.

    Attributes:
        parts: at least one, all with ids or all without.
        size: M; positions beyond those of the parts only fill up and have no mass.
    """

    parts: tuple[TeacherProbs, ...]
    size: int

    def piece(self, piece: slice) -> TeacherProbs:
        """Some positions, p in float32."""
        start, stop, _ = piece.indices(self.size)
        ids = [part.ids for part in self.parts if part.ids is not None]
        return TeacherProbs(
            _cut([part.p for part in self.parts], start, stop, 0.0).astype(mx.float32),
            _cut([part.negative_entropy for part in self.parts], start, stop, 0.0),
            _cut(ids, start, stop, -1) if ids else None,
        )


class Teacher(Protocol):
    """Whoever says p for a batch."""

    @property
    def takes(self) -> tuple[int, int]:
        """Bytes that it will keep at most, and those of a position beside them where it cannot keep everything."""

    def teach(self, batch: Batch) -> TeacherParts:
        """What the target says at the batch's positions."""


class LiveTeacher:
    """The target itself.

    Args:
        forward: the target's logits at chosen positions.
        width: W, the ids that target and draft share.
        examples: every example that will be asked for, whole, but those that are added later.
        memory_mb: for what is kept.
        say: told when not everything can be kept.
        later: the most labels that examples added later have at a time.
    """

    def __init__(
        self,
        forward: Forward,
        width: int,
        examples: Iterable[Example],
        memory_mb: float,
        say: Callable[[str], None],
        later: int = 0,
    ) -> None:
        self._forward = forward
        self._width = width
        self._examples = {example.record_id: example for example in examples}
        self._kept: dict[str, list[TeacherProbs]] = {}
        self._room = allowed = int(memory_mb * MEGABYTE)
        positions = later + sum(len(e.labels) for e in self._examples.values())
        self._type = mx.float32 if (4 * width + 4) * positions <= allowed else mx.float16
        a_position = self._type.size * width + 4
        few = 8 * LIKELIEST + 8
        self._k = LIKELIEST if a_position * positions > allowed and few < a_position else None
        if self._k is not None:
            say(
                f"the target's distributions need {a_position * positions / MEGABYTE:,.0f} MB, "
                f"training.teacher_memory_mb is {memory_mb:,g}: of each the {LIKELIEST} likeliest tokens are kept, all "
                "others as one"
            )
            a_position = few
        elif self._type == mx.float16:
            say("the target's distributions are kept in 16 bits to fit training.teacher_memory_mb")
        missing = a_position * positions - allowed
        if missing > 0:
            say(f"of them, {missing / MEGABYTE:,.0f} MB are computed anew at each use (slower)")
        self.takes = min(a_position * positions, allowed), a_position if missing > 0 else 0

    def add(self, examples: Iterable[Example]) -> None:
        """Take in examples that will be asked for, whole."""
        self._examples.update((example.record_id, example) for example in examples)

    def forget(self, examples: Iterable[Example]) -> None:
        """Drop examples that will not be asked for again, and what was kept of them."""
        for example in examples:
            self._examples.pop(example.record_id, None)
            self._room += _bytes(self._kept.pop(example.record_id, []))

    def teach(self, batch: Batch) -> TeacherParts:
        """p of all ids (M, W), or of the k likeliest and of the rest (M, k + 1)."""
        found = [part for example in batch.examples if example.labels for part in self._of(example)]
        return TeacherParts(tuple(found or [self._nothing()]), batch.size)

    def _of(self, example: Example) -> list[TeacherProbs]:
        """Rows one after the other for the labels of `example`, which may be a shortened one."""
        n = len(example.labels)
        if not example.record_id:  # no record: it only measures what a pass takes
            labels, certain = mx.array(example.labels)[:, None], mx.zeros(n)
            if self._k is None:
                return [TeacherProbs((mx.arange(self._width) == labels).astype(mx.float32), certain)]
            first = mx.arange(self._k + 1) == 0
            one_hot = mx.broadcast_to(first.astype(mx.float32), (n, self._k + 1))
            return [TeacherProbs(one_hot, certain, mx.where(first[:-1], labels, -1))]
        parts = self._kept.get(example.record_id)
        if parts is None:
            parts = self._computed(self._examples[example.record_id])
        found, left = [], n
        for part in parts:
            if left > 0:
                found.append(part.piece(slice(left)))
            left -= part.p.shape[0]
        return found

    def _computed(self, example: Example) -> list[TeacherProbs]:
        """Evaluated a piece of the positions at a time, for a large vocabulary's logits are many; kept if they fit."""
        hidden = self._forward.hidden(mx.array([example.inputs]), mx.array(list(example.positions)))
        sampler = SOFT if example.sampler.temperature == 0 else example.sampler
        found, size = [], positions_at_a_time(self._width)
        for start in range(0, hidden.shape[0], size):
            logits = self._forward.head(hidden[start : start + size])
            found.append(self._told(mx.stop_gradient(sampling_log_probs(logits, sampler, self._width))))
            mx.eval([values for values in found[-1] if values is not None])
        if _bytes(found) <= self._room:
            self._kept[example.record_id] = found
            self._room -= _bytes(found)
        return found

    def _told(self, log_p: mx.array) -> TeacherProbs:
        """What is kept of (m, W)."""
        if self._k is None:
            told = TeacherProbs.of(log_p)
            return told._replace(p=told.p.astype(self._type))
        ids, named, tail = top_k_tokens(mx.exp(log_p), self._k)
        rest = mx.where(tail > _NOISE, mx.log(mx.maximum(tail, _NOISE)), -mx.inf)
        ids = mx.where(named == -mx.inf, -1, ids.astype(mx.int32))
        return TeacherProbs.of(mx.concatenate([named, rest[:, None]], axis=-1), ids)

    def _nothing(self) -> TeacherProbs:
        """Of no position at all."""
        if self._k is None:
            return TeacherProbs(mx.zeros((0, self._width)), mx.zeros(0))
        return TeacherProbs(mx.zeros((0, self._k + 1)), mx.zeros(0), mx.zeros((0, self._k), mx.int32))


def _bytes(parts: Iterable[TeacherProbs]) -> int:
    return sum(values.nbytes for part in parts for values in part if values is not None)


class LoggedTeacher:
    """What the collector kept; where it kept nothing, the token that was emitted.

    Args:
        kept: by record id, for as many output tokens as are trained on, or more.
    """

    takes = 0, 0

    def __init__(self, kept: Mapping[str, TopK]) -> None:
        self._kept = kept
        self._k = max((rows.k for rows in kept.values()), default=1)

    def teach(self, batch: Batch) -> TeacherParts:
        """p of the k likeliest ids and of the rest: (M, k + 1)."""
        log_p = np.full((batch.tokens, self._k + 1), -np.inf, np.float32)
        ids = np.full((batch.tokens, self._k), -1, np.int32)
        start = 0
        for example in batch.examples:
            stop = start + len(example.labels)
            self._fill(example, log_p[start:stop], ids[start:stop])
            start = stop
        return TeacherParts((TeacherProbs.of(mx.array(log_p), mx.array(ids)),), batch.size)

    def _fill(self, example: Example, log_p: np.ndarray, ids: np.ndarray) -> None:
        """The rows of one example, in place."""
        rows = self._kept.get(example.record_id)
        if rows is None:
            ids[:, 0], log_p[:, 0] = example.labels, 0.0
            return
        n = len(example.labels)
        ids[:, : rows.k] = np.where(np.isneginf(rows.log_probs[:n]), -1, rows.ids[:n])
        log_p[:, : rows.k] = rows.log_probs[:n]
        with np.errstate(divide="ignore"):
            log_p[:, -1] = np.log(np.where(rows.tail[:n] > _NOISE, rows.tail[:n], 0.0))


def _cut(parts: Sequence[mx.array], start: int, stop: int, filler: float) -> mx.array:
    """Rows start to stop of parts that lie one after the other; those behind the last one are of `filler`."""
    found, begin = [], 0
    for part in parts:
        end = begin + part.shape[0]
        if begin < stop and end > start:
            found.append(part[max(start - begin, 0) : stop - begin])
        begin = end
    missing = stop - max(start, begin)
    if missing > 0:
        found.append(mx.full((missing, *parts[0].shape[1:]), filler, parts[0].dtype))
    return mx.concatenate(found, axis=0)
