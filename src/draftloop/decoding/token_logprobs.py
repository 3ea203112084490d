"""Log-probabilities of emitted tokens under the target, and of its likeliest ones, before sampler and penalties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class TokenLogprob:
    """An emitted token's log-probability under the target, before sampler and penalties; and its likeliest tokens."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: mx.array, emitted: Sequence[int], most: int) -> tuple[TokenLogprob, ...]:
    """Log-probabilities of emitted tokens, and of the `most` likeliest, from the rows (M, V) before each."""
    logits = logits.astype(mx.float32)
    normal = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    own = mx.take_along_axis(normal, mx.array(emitted)[:, None], axis=-1)[:, 0]
    top = mx.argpartition(-normal, kth=most - 1, axis=-1)[:, :most] if most else mx.zeros((len(emitted), 0), mx.uint32)
    values = mx.take_along_axis(normal, top, axis=-1)
    mx.eval(own, top, values)
    found = []
    for token, value, ids, of_ids in zip(emitted, own.tolist(), top.tolist(), values.tolist(), strict=True):
        likeliest = sorted(zip(ids, of_ids, strict=True), key=lambda pair: (-pair[1], pair[0]))
        found.append(TokenLogprob(token, value, tuple(likeliest)))
    return tuple(found)
