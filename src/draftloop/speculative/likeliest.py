"""The likeliest ids of distributions and the mass of all others, as array operations without a synchronisation.

Knows nothing of rounds, records or whose distributions they are.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..distributions import TopK

Likeliest = tuple[mx.array, mx.array, mx.array]


def likeliest(probs: mx.array, k: int) -> Likeliest:
    """The `k` likeliest ids of each row.

    Args:
        probs: (M, V) float32, each row summing to 1.
        k: 1 .. V.

    Returns:
        ids (M, k), the likeliest first; their log-probabilities (M, k), -inf where there is no mass; the mass of all
        other ids (M,), summed over these and not as a difference from 1, which would round small ones away. Not
        evaluated.
    """
    width = probs.shape[-1]
    parted = mx.argpartition(probs, kth=width - k, axis=-1)
    ids = parted[..., width - k :]
    values = mx.take_along_axis(probs, ids, axis=-1)
    order = mx.argsort(-values, axis=-1)
    tail = mx.minimum(mx.put_along_axis(probs, ids, mx.array(0.0, probs.dtype), axis=-1).sum(axis=-1), 1.0)
    log_probs = mx.log(mx.take_along_axis(values, order, axis=-1))
    return mx.take_along_axis(ids, order, axis=-1), log_probs, tail


def to_numpy(found: Likeliest) -> TopK:
    """What was evaluated, as plain arrays; ids without mass are 0."""
    ids, log_probs = np.array(found[0]).astype(np.int32), np.array(found[1])
    ids[log_probs == -np.inf] = 0
    return TopK(ids, np.minimum(log_probs, 0.0), np.array(found[2]))
