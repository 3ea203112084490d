"""The losses, from log-distributions to sums over supervised positions. Knows no model, no teacher and no records.

M positions of a micro-batch, W ids that target and draft share, everything float32 and in logs as long as it can be:
  log q (M, W) = log-softmax of the draft's logits / temperature, over all W ids: no truncation, full support;
  log p (M, W) = the teacher's, truncated as its sampler says, -inf where it has no mass: p log p is 0 there;
  labels (M,), weights (M,) in {0, 1}.
Sums are returned, never means: only whoever sees a whole accumulation window knows what to divide by.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from ..config import Loss

LK_ETA = 3.0  # arXiv 2602.23881


class Sums(NamedTuple):
    """Over the supervised positions of a micro-batch: the loss, their number, the acceptance Σ min(p, q). Scalars."""

    loss: mx.array
    tokens: mx.array
    acceptance: mx.array


def log_softmax(logits: mx.array, temperature: mx.array, width: int) -> mx.array:
    """log q of the draft.

    Args:
        logits: (M, V), any float type, V >= width.
        temperature: (M, 1) float32, above 0.
        width: W, the ids that target and draft share.

    Returns:
        (M, W) float32, finite for finite logits.
    """
    scaled = logits[..., :width].astype(mx.float32) / temperature
    return scaled - mx.logsumexp(scaled, axis=-1, keepdims=True)


def ce(log_q: mx.array, labels: mx.array) -> mx.array:
    """-log q(y) at each position, (M,)."""
    return -mx.take_along_axis(log_q, labels[:, None], axis=-1).squeeze(-1)


def kl(log_q: mx.array, log_p: mx.array, p: mx.array) -> mx.array:
    """KL(p‖q) at each position, (M,); p = exp(log p)."""
    finite_log_p = mx.where(p > 0, log_p, 0.0)
    return mx.sum(p * (finite_log_p - log_q), axis=-1)


def acceptance(p: mx.array, q: mx.array) -> mx.array:
    """a = Σ min(p, q) = 1 − TV(p, q) at each position, (M,)."""
    return mx.sum(mx.minimum(p, q), axis=-1)


def lk(divergence: mx.array, a: mx.array, weights: mx.array, eta: float = LK_ETA) -> mx.array:
    """λ·KL + (1−λ)·(1−a) at each position, (M,); λ = exp(−η·ā) with ā the mean over the micro-batch, no gradient.

    arXiv 2602.23881: KL leads while little is accepted, the acceptance itself takes over.
    """
    mean = mx.sum(weights * a) / mx.maximum(mx.sum(weights), 1.0)
    share = mx.stop_gradient(mx.exp(-eta * mean))
    return share * divergence + (1.0 - share) * (1.0 - a)


def loss_sums(kind: Loss, log_q: mx.array, log_p: mx.array, labels: mx.array, weights: mx.array) -> Sums:
    """The sums of one loss; all zero, with a zero gradient, where no position is supervised.

    Args:
        kind: `ce`, `kl` or `lk`.
        log_q: (M, W) float32.
        log_p: (M, W) float32.
        labels: (M,) int32.
        weights: (M,) float32.
    """
    p = mx.exp(log_p)
    a = acceptance(p, mx.exp(log_q))
    if kind == "ce":
        each = ce(log_q, labels)
    elif kind == "kl":
        each = kl(log_q, log_p, p)
    else:
        each = lk(kl(log_q, log_p, p), a, weights)
    return Sums(_masked_sum(each, weights), mx.sum(weights), _masked_sum(mx.stop_gradient(a), weights))


def _masked_sum(each: mx.array, weights: mx.array) -> mx.array:
    return mx.sum(mx.where(weights > 0, each, 0.0))
