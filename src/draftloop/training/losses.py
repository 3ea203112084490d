"""The losses, from log-distributions to sums over supervised positions. Knows no model, no teacher and no records.

M positions of a micro-batch, W ids that target and draft share, everything float32 and in logs as long as it can be:
  log q (M, W) = log-softmax of the draft's logits / temperature, over all W ids: no truncation, full support;
  log p (M, W) = the teacher's, truncated as its sampler says, -inf where it has no mass: p log p is 0 there;
  labels (M,), weights (M,) in {0, 1}.
Every loss is made of four sums over positions, so positions may come in pieces and their sums be added. Sums are
returned, never means: only whoever sees a whole accumulation window knows what to divide by.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from ..config import Loss

LK_ETA = 3.0  # arXiv 2602.23881
_LEAST = -1e30  # of a logarithm: minus infinity would make a gradient of 0 times it NaN


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


def log_acceptance(log_q: mx.array, log_p: mx.array) -> mx.array:
    """log a = log Σ min(p, q) at each position, (M,): finite however little the two have in common, and where p is
    nowhere, which a position that only fills up has."""
    return mx.logsumexp(mx.maximum(mx.minimum(log_p, log_q), _LEAST), axis=-1)


class Terms(NamedTuple):
    """What every loss is made of, summed over supervised positions. Scalars.

    Attributes:
        surprise: Σ −log q(y).
        divergence: Σ KL(p‖q).
        acceptance: Σ a, with a = Σ min(p, q) = 1 − TV(p, q).
        refusal: Σ −log a.
        tokens: their number.
    """

    surprise: mx.array
    divergence: mx.array
    acceptance: mx.array
    refusal: mx.array
    tokens: mx.array


def terms(kind: Loss, log_q: mx.array, log_p: mx.array, labels: mx.array, weights: mx.array) -> Terms:
    """The terms of some positions; those that a loss does not need are 0.

    Args:
        kind: the loss.
        log_q: (M, W) float32.
        log_p: (M, W) float32.
        labels: (M,) int32.
        weights: (M,) float32, 1 where a position is supervised and 0 where it only fills up.
    """
    p, nothing = mx.exp(log_p), mx.zeros_like(weights)
    return Terms(
        surprise=_masked_sum(ce(log_q, labels) if kind == "ce" else nothing, weights),
        divergence=_masked_sum(kl(log_q, log_p, p) if kind in ("kl", "lk") else nothing, weights),
        acceptance=_masked_sum(acceptance(p, mx.exp(log_q)), weights),
        refusal=_masked_sum(-log_acceptance(log_q, log_p) if kind == "nla" else nothing, weights),
        tokens=mx.sum(weights),
    )


def lk_share(acceptance: mx.array, tokens: mx.array, eta: float = LK_ETA) -> mx.array:
    """λ = exp(−η·ā) with ā the mean acceptance of a micro-batch; it has no gradient."""
    return mx.stop_gradient(mx.exp(-eta * acceptance / mx.maximum(tokens, 1.0)))


def combine(kind: Loss, found: Terms, share: mx.array | None = None) -> Sums:
    """The sums of one loss; all zero, with a zero gradient, where no position is supervised.

    `ce` −log q(y); `kl` KL(p‖q); `tv` 1 − a; `nla` −log a; `lk` λ·KL + (1−λ)·(1−a) (arXiv 2602.23881): KL leads while
    little is accepted, then the acceptance.

    Args:
        kind: the loss.
        found: of all positions of a micro-batch, or of a piece of them.
        share: λ of the whole micro-batch where `found` is a piece of it.
    """
    refused = found.tokens - found.acceptance
    if kind == "ce":
        loss = found.surprise
    elif kind == "kl":
        loss = found.divergence
    elif kind == "tv":
        loss = refused
    elif kind == "nla":
        loss = found.refusal
    else:
        share = lk_share(found.acceptance, found.tokens) if share is None else share
        loss = share * found.divergence + (1.0 - share) * refused
    return Sums(loss, found.tokens, mx.stop_gradient(found.acceptance))


def loss_sums(kind: Loss, log_q: mx.array, log_p: mx.array, labels: mx.array, weights: mx.array) -> Sums:
    """`combine` of the `terms` of all positions at once."""
    return combine(kind, terms(kind, log_q, log_p, labels, weights))


def _masked_sum(each: mx.array, weights: mx.array) -> mx.array:
    return mx.sum(mx.where(weights > 0, each, 0.0))
