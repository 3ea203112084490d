"""The losses, from distributions to sums over supervised positions. Knows no model, no teacher and no records.

M positions of a micro-batch, W ids that target and draft share, everything float32:
  q (M, S) = softmax of the draft's logits / temperature: no truncation, full support;
  p (M, S) = the teacher's, truncated as its sampler says, 0 where it has no mass: p log p is 0 there.
S is W where the teacher's whole distribution is known. Where only its k likeliest ids are, S = k + 1: these ids, and
one bucket for all others together. Throwing ids together hides what p and q differ by among them, so a loss on buckets
is at most the one on all ids, and Σ min(p, q) at least as large (data processing inequality). Σ p·q leaves the bucket
out, and is at most the one on all ids.
Every loss is made of a few sums over positions, so positions may come in pieces and their sums be added. Sums are
returned, never means: only whoever sees a whole accumulation window knows what to divide by.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from ..config import Loss
from ..models.cpu.exponential import exp

LK_ETA = 3.0  # arXiv 2602.23881
_LEAST = -1e30  # of a logarithm: minus infinity would make a gradient of 0 times it NaN
_LOWEST = -3e38  # of a logit, below any that a model gives


class Sums(NamedTuple):
    """Over the supervised positions of a micro-batch: the loss, their number, the acceptance summed. Scalars."""

    loss: mx.array
    tokens: mx.array
    acceptance: mx.array


class Labels(NamedTuple):
    """What is asked at M positions.

    Attributes:
        labels: (M,) int32, the ids that were emitted there.
        temperature: (M, 1) float32, of the sampler, 1 where that is 0.
        weights: (M,) float32, 1 where a position is supervised and 0 where it only fills up.
        greedy: (M,) bool, where the record's rule is that; None where it is nowhere.
        match: likewise.
    """

    labels: mx.array
    temperature: mx.array
    weights: mx.array
    greedy: mx.array | None = None
    match: mx.array | None = None

    def piece(self, piece: slice) -> Labels:
        """Some of the positions."""
        return Labels(*(None if values is None else values[piece] for values in self))


class TeacherProbs(NamedTuple):
    """What a teacher says at M positions.

    Attributes:
        p: (M, S), of any float type; each row of mass 1, or 0 where a position only fills up.
        certainty: (M,) float32, Σ p log p, which no training changes.
        ids: (M, S - 1) int32 that all but the last column stand for, -1 where a column stands for none; the last is for
            all other ids together. None where S is W: column i is id i.
    """

    p: mx.array
    negative_entropy: mx.array
    ids: mx.array | None = None

    @classmethod
    def of(cls, log_p: mx.array, ids: mx.array | None = None) -> TeacherProbs:
        """What is said with these log-probabilities, -inf where there is no mass."""
        p = mx.exp(log_p)
        return cls(p, mx.sum(p * mx.maximum(log_p, _LEAST), axis=-1), ids)

    def piece(self, piece: slice) -> TeacherProbs:
        """Some of the positions."""
        return TeacherProbs(self.p[piece], self.negative_entropy[piece], None if self.ids is None else self.ids[piece])


class DraftLogits(NamedTuple):
    """What the draft says at M positions, with the likeliest id's logit at 0.

    Attributes:
        scaled: (M, S) float32, logits / temperature over the ids or buckets that the teacher speaks of.
        label: (M,) float32, that of y.
        likeliest: (M,) int32, the draft's likeliest id; None where no rule asks for it.
    """

    scaled: mx.array
    label: mx.array
    likeliest: mx.array | None


def draft_logits(logits: mx.array, asked: Labels, width: int, ids: mx.array | None = None) -> DraftLogits:
    """The draft's part of a loss.

    Args:
        logits: (M, V), any float type, V >= width.
        asked: at these positions.
        width: W, the ids that target and draft share.
        ids: (M, k) int32 where the teacher names only these, -1 where it names none; None where it names all.
    """
    scaled = logits[..., :width].astype(mx.float32) / asked.temperature
    highest = mx.stop_gradient(mx.max(scaled, axis=-1, keepdims=True))
    scaled = scaled - highest
    label = mx.take_along_axis(scaled, asked.labels[:, None], axis=-1).squeeze(-1)
    likeliest = None if asked.greedy is None else mx.argmax(scaled, axis=-1).astype(mx.int32)
    if ids is None:
        return DraftLogits(scaled, label, likeliest)
    some = mx.where(ids < 0, mx.max(ids, axis=-1, keepdims=True), ids)  # out of the bucket anyway
    rest = mx.logsumexp(mx.put_along_axis(scaled, some, mx.array(_LOWEST), axis=-1), axis=-1, keepdims=True)
    named = mx.where(ids < 0, _LOWEST, mx.take_along_axis(scaled, some, axis=-1))
    return DraftLogits(mx.concatenate([named, rest], axis=-1), label, likeliest)


class Overlap(NamedTuple):
    """Where q meets p, at M positions; q itself has no gradient of its own.

    Attributes:
        log_z: (M,) log Σ exp(scaled).
        overlap: (M,) Σ min(p, q).
        cross: (M,) Σ p·scaled.
        q: (M, S) exp(scaled − log z).
    """

    log_z: mx.array
    overlap: mx.array
    cross: mx.array
    q: mx.array


@mx.custom_function  # type: ignore[untyped-decorator]
def _meet(scaled: mx.array, p: mx.array) -> tuple[mx.array, ...]:
    """Exponentials are what a large vocabulary costs, so there is one a logit, and none in the gradient."""
    exponentials = exp(scaled)
    z = mx.sum(exponentials, axis=-1, keepdims=True)
    q = exponentials / z
    overlap = mx.sum(mx.minimum(p, q), axis=-1)
    return mx.log(z).squeeze(-1), overlap, mx.sum(p * scaled, axis=-1), q


@_meet.vjp  # type: ignore[untyped-decorator]
def _meet_gradient(
    primals: tuple[mx.array, mx.array], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
) -> tuple[mx.array, mx.array]:
    """∂log z = q; ∂Σmin(p,q) = q·(1[q<p] − Σ q·1[q<p]); ∂Σp·scaled = p."""
    _, p = primals
    of_log_z, of_overlap, of_cross = (cotangent[:, None] for cotangent in cotangents[:3])
    q = outputs[3]
    below = q * (q < p)  # a third of what mx.where takes on a CPU
    inside = of_log_z - of_overlap * mx.sum(below, axis=-1, keepdims=True)
    return q * inside + of_overlap * below + of_cross * p, mx.zeros_like(p)


def meet(found: DraftLogits, p: mx.array) -> Overlap:
    """What the losses need of p and q together, with a gradient through the student's logits."""
    return Overlap(*_meet(found.scaled, p))


def log_acceptance(
    log_q: mx.array, log_p: mx.array, match: mx.array | None = None, *, bucket: bool = False
) -> mx.array:
    """log a at each position, (M,): a = Σ min(p, q) = 1 − TV(p, q), or Σ p·q where `match` (M,) says so.

    Finite however little the two have in common, and where p is nowhere, which a position that only fills up has. Where
    the last column is a `bucket` of ids, Σ p·q is that of the others: two draws from a bucket are hardly ever one id.
    """
    least = mx.minimum(log_p, log_q)
    if match is not None:
        both = mx.maximum(log_p, _LEAST) + log_q
        if bucket:
            both = mx.where(mx.arange(both.shape[-1]) == both.shape[-1] - 1, _LEAST, both)
        least = mx.where(match[:, None], both, least)
    return mx.logsumexp(mx.maximum(least, _LEAST), axis=-1)


class Terms(NamedTuple):
    """What every loss is made of, summed over supervised positions. Scalars.

    Attributes:
        surprise: Σ −log q(y).
        divergence: Σ KL(p‖q).
        overlap: Σ a, with a = Σ min(p, q) = 1 − TV(p, q), or Σ p·q under `match`: it has a gradient.
        refusal: Σ −log a.
        acceptance: Σ a of the rule: at temperature 0 [argmax q = argmax p] in place of the overlap.
        tokens: their number.
    """

    negative_log_likelihood: mx.array
    divergence: mx.array
    overlap: mx.array
    negative_log_acceptance: mx.array
    acceptance: mx.array
    tokens: mx.array


def terms(kind: Loss, found: DraftLogits, told: TeacherProbs, asked: Labels) -> Terms:
    """The terms of some positions; those that a loss does not need are 0.

    Args:
        kind: the loss.
        found: what the draft says.
        told: what the teacher says, with the ids that `found` was made for.
        asked: labels, rules and weights of the positions.
    """
    by_logs = kind == "nla" or asked.match is not None
    at = _by_logs(found, told, asked.match) if by_logs else _by_meeting(found, told)
    nothing = mx.zeros_like(asked.weights)
    return Terms(
        negative_log_likelihood=_masked_sum(at.log_z - found.label if kind == "ce" else nothing, asked.weights),
        divergence=_masked_sum(at.divergence if kind in ("kl", "lk") else nothing, asked.weights),
        overlap=_masked_sum(at.overlap, asked.weights),
        negative_log_acceptance=_masked_sum(at.negative_log_acceptance if kind == "nla" else nothing, asked.weights),
        acceptance=_masked_sum(_accepted(found, told, asked, at.overlap), asked.weights),
        tokens=mx.sum(asked.weights),
    )


def _accepted(found: DraftLogits, told: TeacherProbs, asked: Labels, overlap: mx.array) -> mx.array:
    """a of the rule, (M,): at temperature 0 whether the draft's likeliest id is the target's.

    The label would not do: where the text is the draft's own, it is always the draft's likeliest id.
    """
    if asked.greedy is None or found.likeliest is None:
        return overlap
    chosen = found.likeliest[:, None]
    if told.ids is None:
        p, of_named = mx.take_along_axis(told.p, chosen, axis=-1).squeeze(-1), told.p
    else:
        of_named = told.p[:, :-1]
        p = mx.sum(mx.where(told.ids == chosen, of_named, 0.0), axis=-1)
    return mx.where(asked.greedy, (p > 0) & (p >= mx.max(of_named, axis=-1)), overlap)


class _At(NamedTuple):
    """At M positions: log Σ exp(scaled), KL(p‖q), a and −log a."""

    log_z: mx.array
    divergence: mx.array
    overlap: mx.array
    negative_log_acceptance: mx.array


def _by_meeting(found: DraftLogits, told: TeacherProbs) -> _At:
    met = meet(found, told.p)
    return _At(met.log_z, told.negative_entropy + met.log_z - met.cross, met.overlap, mx.zeros_like(met.overlap))


def _by_logs(found: DraftLogits, told: TeacherProbs, match: mx.array | None) -> _At:
    """Slower; for a that may be too small for a float32, and for Σ p·q."""
    log_z = mx.logsumexp(found.scaled, axis=-1)
    log_q = found.scaled - log_z[:, None]
    log_a = log_acceptance(log_q, mx.log(told.p), match, bucket=told.ids is not None)
    return _At(log_z, told.negative_entropy - mx.sum(told.p * log_q, axis=-1), mx.exp(log_a), -log_a)


def lk_share(overlap: mx.array, tokens: mx.array, eta: float = LK_ETA) -> mx.array:
    """λ = exp(−η·ā) with ā the mean acceptance of a micro-batch; it has no gradient."""
    return mx.stop_gradient(mx.exp(-eta * overlap / mx.maximum(tokens, 1.0)))


def combine(kind: Loss, found: Terms, share: mx.array | None = None) -> Sums:
    """The sums of one loss; all zero, with a zero gradient, where no position is supervised.

    `ce` −log q(y); `kl` KL(p‖q); `tv` 1 − a; `nla` −log a; `lk` λ·KL + (1−λ)·(1−a) (arXiv 2602.23881): KL leads while
    little is accepted, then the acceptance.

    Args:
        kind: the loss.
        found: of all positions of a micro-batch, or of a piece of them.
        share: λ of the whole micro-batch where `found` is a piece of it.
    """
    refused = found.tokens - found.overlap
    if kind == "ce":
        loss = found.negative_log_likelihood
    elif kind == "kl":
        loss = found.divergence
    elif kind == "tv":
        loss = refused
    elif kind == "nla":
        loss = found.negative_log_acceptance
    else:
        share = lk_share(found.overlap, found.tokens) if share is None else share
        loss = share * found.divergence + (1.0 - share) * refused
    return Sums(loss, found.tokens, mx.stop_gradient(found.acceptance))


def _masked_sum(each: mx.array, weights: mx.array) -> mx.array:
    return mx.sum(mx.where(weights > 0, weights * each, 0.0))
