"""The teacher probabilities at supervised positions: from the target, the log, or its tokens. Never trained.

For a batch with M positions all three give p (M, S) and the tokens that its columns stand for:
  live    the target reads each record once: n positions -> logits (n, V) -> p (n, W) under the record's sampler, or at
          temperature 1 where the record is greedy; kept in float32 where all of it fits into the memory allowed, else
          in float16; where a large vocabulary does not fit so either, as top-k tokens and one bucket for the rest; what
          still does not fit is computed at each use;
  logged  the top-k tokens that the collector kept, and one bucket for the rest: S = k + 1. No target is needed;
  none    all mass on the token that was emitted: S = 2.
Every record is read alone and rounded alike whether it is kept or not, so p never depends on the order of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

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

TOP_K = 128  # tokens kept of a distribution where whole ones do not fit
SOFT = Sampler(temperature=1.0, top_p=1.0, min_p=0.0, top_k=0, seed=0)
"""The sampler for greedy records: the tokens that the target weighed teach more than the one that it took."""
_NOISE = 1e-6  # of a sum in float32: a smaller tail is none, or it would weigh what the draft gives to no token at all


@dataclass(frozen=True)
class TeacherParts:
    """A teacher's distributions at M positions, in parts one after the other: a large vocabulary is never put together.

    Attributes:
        parts: at least one, all with tokens or all without.
        size: M; positions beyond those of the parts are padding and have no mass.
    """

    parts: tuple[TeacherProbs, ...]
    size: int

    def piece(self, piece: slice) -> TeacherProbs:
        """Some positions, p in float32."""
        start, stop, _ = piece.indices(self.size)
        tokens = [part.tokens for part in self.parts if part.tokens is not None]
        return TeacherProbs(
            _rows([part.p for part in self.parts], start, stop, 0.0).astype(mx.float32),
            _rows([part.negative_entropy for part in self.parts], start, stop, 0.0),
            _rows(tokens, start, stop, -1) if tokens else None,
        )


def _rows(parts: Sequence[mx.array], start: int, stop: int, padding: float) -> mx.array:
    """Rows start to stop of parts that lie one after the other, filled up with `padding` behind the last one."""
    rows, begin = [], 0
    for part in parts:
        end = begin + part.shape[0]
        if begin < stop and end > start:
            rows.append(part[max(start - begin, 0) : stop - begin])
        begin = end
    missing = stop - max(start, begin)
    if missing > 0:
        rows.append(mx.full((missing, *parts[0].shape[1:]), padding, parts[0].dtype))
    return mx.concatenate(rows, axis=0)


class LiveTeacher:
    """The target itself.

    Args:
        forward: the target's logits at chosen positions.
        width: W, the tokens that target and draft share.
        examples: every example that will be asked for, whole, but those that are added later.
        memory_mb: for what is kept.
        say: told when not everything can be kept.
        later: the most labels that examples added later have at a time.

    Attributes:
        bytes_needed: what it will keep at most, and what a position takes beside that where it cannot keep everything.
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
        # What is kept of a position: W probabilities in 32 bits, in 16, or the top-k tokens, whichever fits first.
        positions = later + sum(len(example.labels) for example in self._examples.values())
        self._type = mx.float32 if (4 * width + 4) * positions <= allowed else mx.float16
        a_position, of_top_k = self._type.size * width + 4, 8 * TOP_K + 8
        self._k = TOP_K if a_position * positions > allowed and of_top_k < a_position else None
        if self._k is not None:
            say(
                f"the target's distributions need {a_position * positions / MEGABYTE:,.0f} MB, "
                f"training.teacher_memory_mb is {memory_mb:,g}: of each the top {TOP_K} tokens are kept, all others as "
                "one"
            )
            a_position = of_top_k
        elif self._type == mx.float16:
            say("the target's distributions are kept in 16 bits to fit training.teacher_memory_mb")
        missing = a_position * positions - allowed
        if missing > 0:
            say(f"of them, {missing / MEGABYTE:,.0f} MB are computed anew at each use (slower)")
        self.bytes_needed = min(a_position * positions, allowed), a_position if missing > 0 else 0

    def add(self, examples: Iterable[Example]) -> None:
        """Take in examples that will be asked for, whole."""
        self._examples.update((example.record_id, example) for example in examples)

    def forget(self, examples: Iterable[Example]) -> None:
        """Drop examples that will not be asked for again, and what was kept of them."""
        for example in examples:
            self._examples.pop(example.record_id, None)
            self._room += _bytes(self._kept.pop(example.record_id, []))

    def teach(self, batch: Batch) -> TeacherParts:
        """p of all tokens (M, W), or of the top k and of the rest (M, k + 1)."""
        parts = [part for example in batch.examples if example.labels for part in self._of(example)]
        return TeacherParts(tuple(parts or [self._one_hot(())]), batch.size)

    def _of(self, example: Example) -> list[TeacherProbs]:
        """Rows one after the other for the labels of `example`, which may be a shortened one."""
        if not example.record_id:  # no record: it only measures what a pass takes, and the target need not read it
            return [self._one_hot(example.labels)]
        parts = self._kept.get(example.record_id)
        if parts is None:
            parts = self._compute(self._examples[example.record_id])
        rows, left = [], len(example.labels)
        for part in parts:
            if left > 0:
                rows.append(part.piece(slice(left)))
            left -= part.p.shape[0]
        return rows

    def _compute(self, example: Example) -> list[TeacherProbs]:
        """Evaluated a piece of the positions at a time, for a large vocabulary's logits are many; kept if they fit."""
        hidden = self._forward.hidden(mx.array([example.inputs]), mx.array(list(example.positions)))  # (n, D)
        sampler = SOFT if example.sampler.temperature == 0 else example.sampler
        parts, size = [], positions_at_a_time(self._width)
        for start in range(0, hidden.shape[0], size):
            logits = self._forward.head(hidden[start : start + size])  # (m, V)
            parts.append(self._narrowed(mx.stop_gradient(sampling_log_probs(logits, sampler, self._width))))
            mx.eval([values for values in parts[-1] if values is not None])
        if _bytes(parts) <= self._room:
            self._kept[example.record_id] = parts
            self._room -= _bytes(parts)
        return parts

    def _narrowed(self, log_p: mx.array) -> TeacherProbs:
        """What is kept of log-probabilities (m, W)."""
        if self._k is None:
            whole = TeacherProbs.of(log_p)
            return whole._replace(p=whole.p.astype(self._type))
        tokens, top, tail = top_k_tokens(mx.exp(log_p), self._k)
        rest = mx.where(tail > _NOISE, mx.log(mx.maximum(tail, _NOISE)), -mx.inf)
        tokens = mx.where(top == -mx.inf, -1, tokens.astype(mx.int32))
        return TeacherProbs.of(mx.concatenate([top, rest[:, None]], axis=-1), tokens)

    def _one_hot(self, labels: Sequence[int]) -> TeacherProbs:
        """All mass on the labels, in the shape of the rows that are kept; of no label at all, no rows."""
        tokens, certain = mx.array(labels, mx.int32)[:, None], mx.zeros(len(labels))
        if self._k is None:
            return TeacherProbs((mx.arange(self._width) == tokens).astype(mx.float32), certain)
        first = mx.arange(self._k + 1) == 0
        p = mx.broadcast_to(first.astype(mx.float32), (len(labels), self._k + 1))
        return TeacherProbs(p, certain, mx.where(first[:-1], tokens, -1))


def _bytes(parts: Iterable[TeacherProbs]) -> int:
    return sum(values.nbytes for part in parts for values in part if values is not None)


class LoggedTeacher:
    """The top-k tokens that the collector kept; where it kept nothing, the token that was emitted.

    Args:
        kept: by record id, for as many output tokens as are trained on, or more.
    """

    bytes_needed = 0, 0

    def __init__(self, kept: Mapping[str, TopK]) -> None:
        self._kept = kept
        self._k = max((rows.k for rows in kept.values()), default=1)

    def teach(self, batch: Batch) -> TeacherParts:
        """p of the top-k tokens and of the rest: (M, k + 1)."""
        log_p = np.full((batch.tokens, self._k + 1), -np.inf, np.float32)
        tokens = np.full((batch.tokens, self._k), -1, np.int32)
        stop = 0
        for example in batch.examples:
            n = len(example.labels)
            start, stop = stop, stop + n
            rows = self._kept.get(example.record_id)
            if rows is None:
                tokens[start:stop, 0], log_p[start:stop, 0] = example.labels, 0.0
                continue
            tokens[start:stop, : rows.k] = np.where(np.isneginf(rows.log_probs[:n]), -1, rows.tokens[:n])
            log_p[start:stop, : rows.k] = rows.log_probs[:n]
            with np.errstate(divide="ignore"):
                log_p[start:stop, -1] = np.log(np.where(rows.tail[:n] > _NOISE, rows.tail[:n], 0.0))
        return TeacherParts((TeacherProbs.of(mx.array(log_p), mx.array(tokens)),), batch.size)


Teacher = LiveTeacher | LoggedTeacher
"""What gives p for a batch, by `teach`."""
