"""Spot checks made: the target reads a share of the failures again, and says log p of every token. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from ..config import Training
from ..data.records import Record, Sampler
from ..decoding.sampling_filters import sampling_log_probs
from ..decoding.teacher_forced import TargetGeneration, blocks, distributions
from ..models.pair import Pair
from .dataset.contradiction import CheckedRecord, mean_difference, records_to_check

BLOCK_BYTES = 128 << 20  # of distributions at once


def check_records(
    pair: Pair, records: Sequence[Record], settings: Training, on_record: Callable[[int, int], None]
) -> list[CheckedRecord]:
    """Let the target read some of the records again.

    Args:
        pair: its target is used, so its weights are read where they are still on disk.
        records: failures of this target, with outputs.
        settings: the share that is checked, and the seed that chooses it.
        on_record: called with how many were read and of how many.

    Returns:
        The checked ones, in the order of `records`.
    """
    # 1. Which ones.
    chosen = set(records_to_check({r.id: r.source for r in records}, settings.spot_check_share, settings.seed))
    checked = [record for record in records if record.id in chosen]
    generations = [TargetGeneration.of(record) for record in checked]
    # 2. One pass of the target over each, under the record's own sampler.
    differences: dict[int, float] = {}
    for block in blocks(generations, pair.width, BLOCK_BYTES):
        for i, log_p in distributions(pair.target, generations, block, pair.width, _log_probs):
            emitted = mx.take_along_axis(log_p, mx.array(generations[i].output)[:, None], axis=-1)  # (N, 1)
            differences[i] = mean_difference(checked[i].log_p, emitted[:, 0].tolist())
            on_record(len(differences), len(checked))
    return [CheckedRecord(one.id, one.source, differences[i]) for i, one in enumerate(checked)]


def _log_probs(logits: mx.array, sampler: Sampler, width: int) -> mx.array:
    """What the record should say; at temperature 0 how far each token is below the best one, for the best may be two.

    One-hot, a near-tie that rounds the other way would count like a token that the target never writes.
    """
    if sampler.temperature > 0:
        return sampling_log_probs(logits, sampler, width)
    logits = logits[..., :width].astype(mx.float32)
    return logits - mx.max(logits, axis=-1, keepdims=True)
