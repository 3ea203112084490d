"""What the target says at supervised positions: asked live, read from the log, or only its tokens. Never trained.

For a batch with M positions all three give log p (M, S) and the ids that its columns stand for:
  live    the target reads each record once: n positions -> logits (n, V) -> log p (n, W) under the record's sampler,
          kept in float32 where all fit into the memory allowed, in float16 otherwise, else computed at each use;
  logged  the k likeliest ids that the collector kept, and one bucket for the rest: S = k + 1. No target is needed;
  none    all mass on the token that was emitted: S = 2.
Every record is read alone and rounded alike whether it is kept or not, so log p never depends on the order of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from ..distributions import TopK
from ..speculative.transforms import sampling_log_probs
from .batches import Batch
from .examples import Example
from .forward import Forward

_MEGABYTE = 1 << 20
_NOISE = 1e-6  # of a sum in float32: a smaller tail is none, or it would weigh what the draft gives to no id at all


class Rows(NamedTuple):
    """What a teacher says at m positions: log p (m, S) float32, and ids (m, S - 1) int32 or None as in `Taught`."""

    log_p: mx.array
    ids: mx.array | None


@dataclass(frozen=True)
class Taught:
    """What a teacher says at M positions, in parts one after the other: a large vocabulary is never put together.

    Attributes:
        log_p: parts (n, S) of any float type, each row of mass 1.
        ids: parts (n, S - 1) int32, that all but the last column stand for, -1 where a column stands for none; the last
            is for all other ids together. None where S is W: column i is id i.
        size: M; positions beyond those of the parts only fill up and have no mass.
    """

    log_p: tuple[mx.array, ...]
    ids: tuple[mx.array, ...] | None
    size: int

    def piece(self, piece: slice) -> Rows:
        """The rows of some positions."""
        start, stop, _ = piece.indices(self.size)
        log_p = _cut(self.log_p, start, stop, -mx.inf).astype(mx.float32)
        return Rows(log_p, None if self.ids is None else _cut(self.ids, start, stop, -1))


class Teacher(Protocol):
    """Whoever says log p for a batch."""

    @property
    def takes(self) -> tuple[int, int]:
        """Bytes that it will keep at most, and those of a position beside them where it cannot keep everything."""

    def teach(self, batch: Batch) -> Taught:
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
        self._kept: dict[str, mx.array] = {}
        self._room = allowed = int(memory_mb * _MEGABYTE)
        numbers = width * (later + sum(len(e.labels) for e in self._examples.values() if not _is_hard(e)))
        self._type = mx.float32 if 4 * numbers <= allowed else mx.float16
        self.takes = min(4 * numbers, allowed), 4 * width if 2 * numbers > allowed else 0
        if 2 * numbers > allowed:
            say(
                f"the teacher's distributions need {2 * numbers / _MEGABYTE:,.0f} MB, training.teacher_memory_mb is "
                f"{memory_mb:,g}: what does not fit is computed anew each epoch (slower)"
            )
        elif self._type == mx.float16:
            say("the teacher's distributions are kept in 16 bits to fit training.teacher_memory_mb")

    def add(self, examples: Iterable[Example]) -> None:
        """Take in examples that will be asked for, whole."""
        self._examples.update((example.record_id, example) for example in examples)

    def forget(self, examples: Iterable[Example]) -> None:
        """Drop examples that will not be asked for again, and what was kept of them."""
        for example in examples:
            self._examples.pop(example.record_id, None)
            rows = self._kept.pop(example.record_id, None)
            self._room += 0 if rows is None else rows.nbytes

    def teach(self, batch: Batch) -> Taught:
        """log p over all ids: (M, W)."""
        parts = [self._of(example) for example in batch.examples if example.labels]
        return Taught(tuple(parts or [mx.zeros((0, self._width))]), None, batch.size)

    def _of(self, example: Example) -> mx.array:
        """(n, W), where n is the number of labels of `example`, which may be a shortened one."""
        if _is_hard(example):
            return mx.where(mx.arange(self._width) == mx.array(example.labels)[:, None], 0.0, -mx.inf)
        rows = self._kept.get(example.record_id)
        if rows is None:
            rows = self._compute(self._examples[example.record_id])
        return rows[: len(example.labels)]

    def _compute(self, example: Example) -> mx.array:
        logits = self._forward(mx.array([example.inputs]), mx.array(list(example.positions)))
        rows = mx.stop_gradient(sampling_log_probs(logits, example.sampler, self._width)).astype(self._type)
        mx.eval(rows)
        if rows.nbytes <= self._room:
            self._kept[example.record_id] = rows
            self._room -= rows.nbytes
        return rows


class LoggedTeacher:
    """What the collector kept; where it kept nothing, the token that was emitted.

    Args:
        kept: by record id, for as many output tokens as are trained on, or more.
    """

    takes = 0, 0

    def __init__(self, kept: Mapping[str, TopK]) -> None:
        self._kept = kept
        self._k = max((rows.k for rows in kept.values()), default=1)

    def teach(self, batch: Batch) -> Taught:
        """log p of the k likeliest ids and of the rest: (M, k + 1)."""
        log_p = np.full((batch.tokens, self._k + 1), -np.inf, np.float32)
        ids = np.full((batch.tokens, self._k), -1, np.int32)
        start = 0
        for example in batch.examples:
            stop = start + len(example.labels)
            self._fill(example, log_p[start:stop], ids[start:stop])
            start = stop
        return Taught((mx.array(log_p),), (mx.array(ids),), batch.size)

    def _fill(self, example: Example, log_p: np.ndarray, ids: np.ndarray) -> None:
        """The rows of one example, in place."""
        rows = None if _is_hard(example) else self._kept.get(example.record_id)
        if rows is None:
            ids[:, 0], log_p[:, 0] = example.labels, 0.0
            return
        n = len(example.labels)
        ids[:, : rows.k] = np.where(np.isneginf(rows.log_probs[:n]), -1, rows.ids[:n])
        log_p[:, : rows.k] = rows.log_probs[:n]
        with np.errstate(divide="ignore"):
            log_p[:, -1] = np.log(np.where(rows.tail[:n] > _NOISE, rows.tail[:n], 0.0))


def _is_hard(example: Example) -> bool:
    """Whether all of the teacher's mass is on the label: greedy text has no other."""
    return example.sampler.temperature == 0 and not example.own


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
        found.append(mx.full((missing, parts[0].shape[1]), filler, parts[0].dtype))
    return mx.concatenate(found, axis=0)
