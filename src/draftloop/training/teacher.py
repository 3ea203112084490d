"""The target as teacher: its distribution under each record's own sampler, once per record. It is never trained.

One example with n labels -> target logits at its n supervised positions (n, V) -> log p (n, W), kept in float32 where
all of them fit into the memory allowed, in float16 otherwise, and computed again at each use where even that is much.
Every record is read alone and rounded alike whether it is kept or not, so log p never depends on the order of a run.
At temperature 0 p is one-hot at the record's own token, and the target is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import mlx.core as mx

from ..speculative.transforms import sampling_log_probs
from .batches import Batch
from .examples import Example
from .forward import Forward

_MEGABYTE = 1 << 20


class Teacher:
    """Log-distributions of the target at the supervised positions.

    Args:
        forward: the target's logits at chosen positions.
        width: W, the ids that target and draft share.
        examples: every example that will be asked for, whole.
        memory_mb: for what is kept.
        say: told when not everything can be kept.
    """

    def __init__(
        self, forward: Forward, width: int, examples: Iterable[Example], memory_mb: float, say: Callable[[str], None]
    ) -> None:
        self._forward = forward
        self._width = width
        self._examples = {example.record_id: example for example in examples}
        self._kept: dict[str, mx.array] = {}
        self._room = int(memory_mb * _MEGABYTE)
        numbers = width * sum(len(e.labels) for e in self._examples.values() if e.sampler.temperature > 0)
        self._type = mx.float32 if 4 * numbers <= self._room else mx.float16
        if 2 * numbers > self._room:
            say(
                f"the teacher's distributions need {2 * numbers / _MEGABYTE:,.0f} MB, training.teacher_memory_mb is "
                f"{memory_mb:,g}: what does not fit is computed anew each epoch (slower)"
            )
        elif self._type == mx.float16:
            say("the teacher's distributions are kept in 16 bits to fit training.teacher_memory_mb")

    def log_probs(self, batch: Batch) -> mx.array:
        """log p at the batch's positions: (M, W) float32, -inf everywhere on positions that are only filled up."""
        parts = [self._of(example) for example in batch.examples if example.labels]
        missing = batch.labels.shape[0] - batch.tokens
        if missing:
            parts.append(mx.full((missing, self._width), -mx.inf, mx.float32))
        return mx.concatenate(parts, axis=0)

    def _of(self, example: Example) -> mx.array:
        """(n, W) float32, where n is the number of labels of `example`, which may be a shortened one."""
        if example.sampler.temperature == 0:
            return mx.where(mx.arange(self._width) == mx.array(example.labels)[:, None], 0.0, -mx.inf)
        rows = self._kept.get(example.record_id)
        if rows is None:
            rows = self._compute(self._examples[example.record_id])
        return rows[: len(example.labels)].astype(mx.float32)

    def _compute(self, example: Example) -> mx.array:
        logits = self._forward(mx.array([example.inputs]), mx.array(list(example.positions)))
        rows = mx.stop_gradient(sampling_log_probs(logits, example.sampler, self._width)).astype(self._type)
        mx.eval(rows)
        if rows.nbytes <= self._room:
            self._kept[example.record_id] = rows
            self._room -= rows.nbytes
        return rows
