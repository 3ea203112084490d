"""The losses, from distributions to sums over supervised positions. Knows no model, no teacher and no records.

M positions of a micro-batch, W tokens that target and draft share, everything float32:
  q (M, S) = softmax of the draft's logits / temperature: no truncation, full support;
  p (M, S) = the teacher's, truncated as its sampler says, 0 where it has no mass: p log p is 0 there.
S is W where the teacher gives whole distributions. Where it gives the top-k tokens only, S = k + 1: these tokens, and
one bucket for all others together. A bucket hides how p and q differ among its tokens, so a loss on buckets is at most
the loss on all tokens, and Σ min(p, q) at least as large (data processing inequality). Σ p·q leaves the bucket out, and
is at most the one on all tokens.

    logits (M, V) -> draft_logits -> terms (sums over positions) -> combine -> Sums(loss, tokens, acceptance)

Every loss is made of the same few sums over positions, so positions may come in pieces and their sums be added. Sums
are returned, never means: only the caller that sees a whole accumulation window knows what to divide by.
"""

from __future__ import annotations

from typing import NamedTuple, assert_never

import mlx.core as mx

from ..config import Loss

LK_ETA = 3.0  # arXiv 2602.23881
_LEAST_LOG = -1e30  # in place of minus infinity, which times a gradient of 0 is NaN
_LEAST_LOGIT = -3e38  # below any that a model gives


class Sums(NamedTuple):
    """Over the supervised positions of a micro-batch: the loss, their number, the acceptance summed. Scalars.

    `overlap` is what λ of `lk` is made of; the acceptance is another number at temperature 0 (`Terms`).
    """

    loss: mx.array
    tokens: mx.array
    acceptance: mx.array
    overlap: mx.array


class Labels(NamedTuple):
    """What M positions are trained on.

    Attributes:
        tokens: (M,) int32, the tokens that were emitted there.
        temperature: (M, 1) float32, of the sampler, 1 where that is 0.
        weights: (M,) float32, 1 where a position is supervised and 0 where it is padding.
        greedy: (M,) bool, whether the sampler's temperature is 0; None where no position's is.
        match: (M,) bool, whether it is `match`; None where no position's is.
    """

    tokens: mx.array
    temperature: mx.array
    weights: mx.array
    greedy: mx.array | None = None
    match: mx.array | None = None

    def piece(self, piece: slice) -> Labels:
        """Some of the positions."""
        return Labels(*(None if values is None else values[piece] for values in self))


class TeacherProbs(NamedTuple):
    """A teacher's distributions at M positions.

    Attributes:
        p: (M, S), of any float type; each row has mass 1, or 0 where a position is padding.
        negative_entropy: (M,) float32, Σ p log p, which no training changes.
        tokens: (M, S - 1) int32, the tokens of all columns but the last, -1 where a column stands for none; the last
            column is the bucket of all other tokens. None where S is W: column i is token i.
    """

    p: mx.array
    negative_entropy: mx.array
    tokens: mx.array | None = None

    @classmethod
    def of(cls, log_p: mx.array, tokens: mx.array | None = None) -> TeacherProbs:
        """From log-probabilities (M, S), -inf where there is no mass."""
        p = mx.exp(log_p)
        return cls(p, mx.sum(p * mx.maximum(log_p, _LEAST_LOG), axis=-1), tokens)

    def piece(self, piece: slice) -> TeacherProbs:
        """Some of the positions."""
        return TeacherProbs(*(None if values is None else values[piece] for values in self))


class DraftLogits(NamedTuple):
    """The draft's logits at M positions, divided by the temperature and shifted so that the highest of a row is 0.

    Attributes:
        scaled: (M, S) float32, over the tokens or buckets of the teacher.
        label: (M,) float32, that of the label y.
        argmax: (M,) int32, the draft's most likely token; None where no rule needs it.
    """

    scaled: mx.array
    label: mx.array
    argmax: mx.array | None


def draft_logits(logits: mx.array, labels: Labels, width: int, tokens: mx.array | None = None) -> DraftLogits:
    """The draft's part of a loss.

    Args:
        logits: (M, V), any float type, V >= width.
        labels: of these positions.
        width: W, the tokens that target and draft share.
        tokens: (M, k) int32, the teacher's top-k, -1 where a column stands for none; None where it gives all W.
    """
    scaled = logits[..., :width].astype(mx.float32) / labels.temperature  # (M, W)
    label = mx.take_along_axis(scaled, labels.tokens[:, None], axis=-1).squeeze(-1)  # (M,)
    argmax = None if labels.greedy is None else mx.argmax(scaled, axis=-1).astype(mx.int32)
    if tokens is not None:
        # A column without a token (-1) repeats the largest token of its row, which is out of the bucket already; a row
        # without any token is padding, and has weight 0.
        present = mx.where(tokens < 0, mx.max(tokens, axis=-1, keepdims=True), tokens)  # (M, k)
        bucket = bucket_of(scaled, present)[0]  # (M, 1)
        named = mx.where(tokens < 0, _LEAST_LOGIT, mx.take_along_axis(scaled, present, axis=-1))
        scaled = mx.concatenate([named, bucket], axis=-1)
    highest = mx.stop_gradient(mx.max(scaled, axis=-1, keepdims=True))
    return DraftLogits(scaled - highest, label - highest.squeeze(-1), argmax)


@mx.custom_function  # type: ignore[untyped-decorator]
def bucket_of(scaled: mx.array, named: mx.array) -> tuple[mx.array, ...]:
    """The logit of all tokens that are not named, as one: log Σ exp. Its gradient takes no further exponential.

    Args:
        scaled: (M, W) float32.
        named: (M, k) int32, at least one.

    Returns:
        The logit, (M, 1), about `_LEAST_LOGIT` where all tokens are named; and for the gradient exp of what is not
        named, (M, W), its sum and the logit that it was shifted by, both (M, 1).
    """
    outside = mx.put_along_axis(scaled, named, mx.array(_LEAST_LOGIT), axis=-1)
    highest = mx.max(outside, axis=-1, keepdims=True)
    exponentials = mx.exp(outside - highest)
    z = mx.sum(exponentials, axis=-1, keepdims=True)
    return highest + mx.log(z), exponentials, z, highest


@bucket_of.vjp  # type: ignore[untyped-decorator]
def _bucket_gradient(
    primals: tuple[mx.array, mx.array], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
) -> tuple[mx.array, mx.array]:
    """∂ log Σ exp is the share of each token, 0 of a named one. Where all are named there is nothing to change."""
    _, exponentials, z, highest = outputs
    return exponentials * mx.where(highest > _LEAST_LOGIT / 2, cotangents[0] / z, 0.0), mx.zeros_like(primals[1])


@mx.custom_function  # type: ignore[untyped-decorator]
def overlap_of(scaled: mx.array, p: mx.array) -> tuple[mx.array, ...]:
    """What the losses need of p and q together, with a gradient through the draft's logits.

    Exponentials are what a large vocabulary costs, so there is one per logit, and none in the gradient.

    Args:
        scaled: (M, S) as in DraftLogits.
        p: (M, S).

    Returns:
        log z = log Σ exp(scaled), (M,); the overlap Σ min(p, q), (M,); Σ p·scaled, (M,); and q = exp(scaled − log z),
        (M, S), which has no gradient of its own.
    """
    exponentials = mx.exp(scaled)
    z = mx.sum(exponentials, axis=-1, keepdims=True)
    q = exponentials / z
    overlap = mx.sum(mx.minimum(p, q), axis=-1)
    return mx.log(z).squeeze(-1), overlap, mx.sum(p * scaled, axis=-1), q


@overlap_of.vjp  # type: ignore[untyped-decorator]
def _overlap_gradient(
    primals: tuple[mx.array, mx.array], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
) -> tuple[mx.array, mx.array]:
    """∂log z = q; ∂Σmin(p,q) = q·(1[q<p] − Σ q·1[q<p]); ∂Σp·scaled = p. p is a constant: its gradient is 0."""
    _, p = primals
    of_log_z, of_overlap, of_cross = (cotangent[:, None] for cotangent in cotangents[:3])
    q = outputs[3]
    below = q * (q < p)  # a third of the time of mx.where on a CPU
    inside = of_log_z - of_overlap * mx.sum(below, axis=-1, keepdims=True)
    return q * inside + of_overlap * below + of_cross * p, mx.zeros_like(p)


def log_acceptance(
    log_q: mx.array, log_p: mx.array, match: mx.array | None = None, *, bucket: bool = False
) -> mx.array:
    """log a at each position, (M,): a = Σ min(p, q) = 1 − TV(p, q), or Σ p·q where `match` (M,) is true.

    Finite however little the two have in common, and where p has no mass at all, as at padding. Where the last column
    is a `bucket`, Σ p·q leaves it out: two draws from a bucket are hardly ever the same token.
    """
    least = mx.minimum(log_p, log_q)
    if match is not None:
        both = mx.maximum(log_p, _LEAST_LOG) + log_q
        if bucket:
            both = mx.where(mx.arange(both.shape[-1]) == both.shape[-1] - 1, _LEAST_LOG, both)
        least = mx.where(match[:, None], both, least)
    return mx.logsumexp(mx.maximum(least, _LEAST_LOG), axis=-1)


class Terms(NamedTuple):
    """What every loss is made of, summed over supervised positions. Scalars.

    Attributes:
        negative_log_likelihood: Σ −log q(y).
        divergence: Σ KL(p‖q).
        overlap: Σ a, with a = Σ min(p, q) = 1 − TV(p, q), or Σ p·q under `match`: it has a gradient.
        negative_log_acceptance: Σ −log a.
        acceptance: Σ a of the rule: at temperature 0 [argmax q = argmax p] in place of the overlap.
        tokens: their number.
    """

    negative_log_likelihood: mx.array
    divergence: mx.array
    overlap: mx.array
    negative_log_acceptance: mx.array
    acceptance: mx.array
    tokens: mx.array


def terms(kind: Loss, draft: DraftLogits, teacher: TeacherProbs, labels: Labels) -> Terms:
    """The terms of some positions; those that the loss does not need are 0.

    Args:
        kind: the loss.
        draft: made for the tokens of `teacher`.
        teacher: its distributions there.
        labels: of the positions.
    """
    # 1. Per position, (M,): log z = log Σ exp(scaled), KL(p‖q), a, and −log a.
    if kind == "nla" or labels.match is not None:
        # By logarithms: slower, but right for an a that is too small for a float32, and for Σ p·q.
        log_z = mx.logsumexp(draft.scaled, axis=-1)
        log_q = draft.scaled - log_z[:, None]  # (M, S)
        log_a = log_acceptance(log_q, mx.log(teacher.p), labels.match, bucket=teacher.tokens is not None)
        divergence = teacher.negative_entropy - mx.sum(teacher.p * log_q, axis=-1)
        overlap, negative_log_a = mx.exp(log_a), -log_a
    else:
        log_z, overlap, cross, _ = overlap_of(draft.scaled, teacher.p)
        divergence = teacher.negative_entropy + log_z - cross
        negative_log_a = mx.zeros_like(overlap)  # no other loss needs it

    # 2. The acceptance that is reported: at temperature 0, whether both models' most likely tokens are the same.
    acceptance = overlap
    if labels.greedy is not None and draft.argmax is not None:
        acceptance = mx.where(labels.greedy, _is_top(teacher, draft.argmax), overlap)

    # 3. Sums over the supervised positions.
    nothing = mx.zeros_like(labels.weights)
    return Terms(
        negative_log_likelihood=_masked_sum(log_z - draft.label if kind == "ce" else nothing, labels.weights),
        divergence=_masked_sum(divergence if kind in ("kl", "lk") else nothing, labels.weights),
        overlap=_masked_sum(overlap, labels.weights),
        negative_log_acceptance=_masked_sum(negative_log_a if kind == "nla" else nothing, labels.weights),
        acceptance=_masked_sum(acceptance, labels.weights),
        tokens=mx.sum(labels.weights),
    )


def _is_top(teacher: TeacherProbs, tokens: mx.array) -> mx.array:
    """Whether each of `tokens` (M,) is the teacher's most likely one, (M,) bool.

    The label cannot say it: on an on-policy sample the label is the draft's own token.
    """
    if teacher.tokens is None:
        named = teacher.p
        p = mx.take_along_axis(named, tokens[:, None], axis=-1).squeeze(-1)
    else:
        named = teacher.p[:, :-1]  # without the bucket
        p = mx.sum(mx.where(teacher.tokens == tokens[:, None], named, 0.0), axis=-1)
    return (p > 0) & (p >= mx.max(named, axis=-1))


def lk_weight(overlap: mx.array, tokens: mx.array, eta: float = LK_ETA) -> mx.array:
    """λ = exp(−η·ā) with ā the mean overlap of some positions; it has no gradient."""
    return mx.stop_gradient(mx.exp(-eta * overlap / mx.maximum(tokens, 1.0)))


def combine(kind: Loss, sums: Terms, weight: mx.array | None = None) -> Sums:
    """The loss of some terms; all zero, with a zero gradient, where no position is supervised.

    `ce` −log q(y); `kl` KL(p‖q); `tv` 1 − a; `nla` −log a; `lk` λ·KL + (1−λ)·(1−a) (arXiv 2602.23881): KL leads while
    little is accepted, then the acceptance.

    Args:
        kind: the loss.
        sums: over all positions of a micro-batch, or over a piece of them.
        weight: λ; None makes it of these positions, which have to be all of a micro-batch then.
    """
    rejected = sums.tokens - sums.overlap
    if kind == "ce":
        loss = sums.negative_log_likelihood
    elif kind == "kl":
        loss = sums.divergence
    elif kind == "tv":
        loss = rejected
    elif kind == "nla":
        loss = sums.negative_log_acceptance
    elif kind == "lk":
        weight = lk_weight(sums.overlap, sums.tokens) if weight is None else weight
        loss = weight * sums.divergence + (1.0 - weight) * rejected
    else:
        assert_never(kind)
    return Sums(loss, sums.tokens, mx.stop_gradient(sums.acceptance), mx.stop_gradient(sums.overlap))


def _masked_sum(values: mx.array, weights: mx.array) -> mx.array:
    return mx.sum(mx.where(weights > 0, weights * values, 0.0))
