"""The top-k tokens of distributions and the mass of all others, as array operations without a synchronisation.

Knows nothing of rounds, records or whose distributions they are.
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from ..data.teacher_top_k import TopK
from .row_blocks import row_sums

_SMALLEST_BLOCK = 4  # tokens; below, selecting twice saves nothing

TopKArrays = tuple[mx.array, mx.array, mx.array]


def top_k_tokens(probs: mx.array, k: int) -> TopKArrays:
    """The `k` most probable tokens of each row, and the mass of all others.

    Args:
        probs: (M, V) float32, each row summing to 1.
        k: 1 .. V.

    Returns:
        tokens (M, k), the most probable first; their log-probabilities (M, k), -inf where there is no mass; the mass of
        all others (M,), summed over these and not as a difference from 1, which would round small ones away. Not
        evaluated.
    """
    tokens = _top(probs, k)
    values = mx.take_along_axis(probs, tokens, axis=-1)
    order = mx.argsort(-values, axis=-1)
    others = mx.put_along_axis(probs, tokens, mx.array(0.0, probs.dtype), axis=-1)
    tail = mx.minimum(row_sums(others), 1.0)
    log_probs = mx.log(mx.take_along_axis(values, order, axis=-1))
    return mx.take_along_axis(tokens, order, axis=-1), log_probs, tail


def _top(probs: mx.array, k: int) -> mx.array:
    """The `k` most probable tokens, (M, k), in no order.

    They lie in the `k` blocks of tokens whose maxima are the greatest, since in any other block each token is at most
    as likely as `k` others. With blocks of √(V/k) tokens both selections are over √(V·k), where one over all is over V.
    """
    rows, width = probs.shape
    block = math.isqrt(width // k)
    if block < _SMALLEST_BLOCK:
        return _greatest(probs, k)
    padded = mx.pad(probs, [(0, 0), (0, -width % block)], constant_values=-1.0) if width % block else probs
    blocks = padded.reshape(rows, -1, block)
    best = _greatest(mx.max(blocks, axis=-1), k)  # (M, k)
    candidates = mx.take_along_axis(blocks, best[..., None], axis=1).reshape(rows, k * block)
    places = _greatest(candidates, k)
    return mx.take_along_axis(best, places // block, axis=-1) * block + places % block


def _greatest(values: mx.array, k: int) -> mx.array:
    """The columns of the `k` greatest of each row, in no order."""
    count = values.shape[-1]
    return mx.argpartition(values, kth=count - k, axis=-1)[..., count - k :]


def to_numpy(topk: TopKArrays) -> TopK:
    """Evaluated top-k tokens as NumPy arrays; tokens without mass are 0."""
    tokens, log_probs = np.array(topk[0]).astype(np.int32), np.array(topk[1])
    tokens[log_probs == -np.inf] = 0
    return TopK(tokens, np.minimum(log_probs, 0.0), np.array(topk[2]))
