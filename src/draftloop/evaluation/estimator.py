"""The estimator: the rounds that speculative decoding would take on a finished output, for every draft length.

It knows nothing of models, samplers, files or mlx. It takes log p(y) and log q(y) of the tokens y_0 … y_{N−1} that the
target emitted under one sampler, and returns expectations over the randomness of draft and verification *given y*.

Why y is enough: whatever the rule, a round that has kept its first a proposals emits a next token that has the
target's distribution, so the acceptances depend on y only up to the place they speak of. A round from i therefore
accepts at least a proposals with a probability S_i(a) that needs log p and log q of y_i … y_{i+a−1} alone, and the
starts of rounds are a renewal process.

The end of an output. A round that starts i tokens into an output of N drafts min(K, N−i); proposals past the end count
as nothing, neither drafted nor accepted. Where no more tokens were allowed a decoder drafts no more than fit anyway.
Before an end-of-text it cannot know, and every round that starts within K of it, not the last alone, has proposals that
are not counted. A round that accepts all of its min(K, N−i) proposals and reaches the end emits no bonus token.
`expected_rounds` and `realised` both count so, and agree in expectation. Summing a decoder's raw rounds does not.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..config import Rule

FloatArray = npt.NDArray[np.float64]

# A log-softmax in float32 or an acceptance summed over a vocabulary may stand this far above its bound.
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Counts of one output, or of several added up; every rate is a ratio of these sums.

    Attributes:
        tokens: N, the emitted tokens; end-of-text is one of them.
        rounds: draft-then-verify cycles; an expectation from `expected_rounds`, a whole number from `realised`.
        drafted: proposals, those past the end of an output left out.
        accepted: proposals that were kept.
        position_sum: sum over the positions of the exact acceptance `a`; None where it was not measured.
    """

    tokens: int
    rounds: float
    drafted: float
    accepted: float
    position_sum: float | None = None

    def __add__(self, other: Acceptance) -> Acceptance:
        """Add count by count; the position sum is unknown as soon as one of the two is."""
        known = self.position_sum is not None and other.position_sum is not None
        return Acceptance(
            tokens=self.tokens + other.tokens,
            rounds=self.rounds + other.rounds,
            drafted=self.drafted + other.drafted,
            accepted=self.accepted + other.accepted,
            position_sum=(self.position_sum or 0.0) + (other.position_sum or 0.0) if known else None,
        )

    @property
    def acceptance_length(self) -> float:
        """Tokens per round. Raises ValueError where there was no round."""
        return _ratio(self.tokens, self.rounds, "acceptance length", "round")

    @property
    def acceptance_rate(self) -> float:
        """Accepted per drafted token. Raises ValueError where nothing was drafted (K = 0)."""
        return _ratio(self.accepted, self.drafted, "acceptance rate", "drafted token")

    @property
    def acceptance_per_position(self) -> float | None:
        """Mean of `a` over the positions; None where `a` was not measured. Raises ValueError without a token."""
        if self.position_sum is None:
            return None
        return _ratio(self.position_sum, self.tokens, "acceptance per position", "token")


def total(parts: Iterable[Acceptance]) -> Acceptance:
    """Sum over outputs, from which the rates follow as ratios of sums. Raises ValueError where there is none."""
    outputs = list(parts)
    if not outputs:
        raise ValueError("no output to sum over: expected at least one Acceptance")
    return functools.reduce(operator.add, outputs)


def log_probs(values: Sequence[float | None]) -> FloatArray:
    """Log-probabilities from a record, where None says that the sampler's transforms left the token no mass.

    Returns:
        (N,) float64, with −inf for None.
    """
    return np.array([-np.inf if value is None else value for value in values], dtype=np.float64)


def position_weights(log_p: FloatArray, log_q: FloatArray, rule: Rule) -> FloatArray:
    """Probability that y_t is accepted as a proposal, given that the target emits it and the round gets there.

    `greedy` and `match` read q alone: [argmax q = y], for which log q is 0 or −inf (at temperature 0 q is one-hot), and
    q(y). `rejection` is min(1, q(y)/p(y)) (Leviathan et al., 2211.17192); `block` is the same for the first proposal of
    a round and has no weight of its own further on: see `survival`.

    Args:
        log_p: (N,) float64, log p(y_t); −inf or NaN where p has no mass, and then w = 0 if the rule reads p.
        log_q: (N,) float64, log q(y_t); −inf or NaN where q has no mass, and then w = 0.
        rule: the acceptance rule.

    Returns:
        (N,) float64 in [0, 1].

    Raises:
        ValueError: the arrays are empty, of unequal length or no log-probabilities, or q is not one-hot under `greedy`.
    """
    return np.exp(np.minimum(_log_steps(log_p, log_q, rule), 0.0))


def survival(log_p: FloatArray, log_q: FloatArray, rule: Rule, num_draft_tokens: int) -> FloatArray:
    """S_i(a): the probability that a round which starts at i accepts at least a proposals.

    S_i(a) = min over 0 ≤ j ≤ a of Π_{t<j} s_{i+t}, the empty product being 1. For `block` (Sun et al., 2403.10444) s is
    the ratio q(y)/p(y), unclipped; for the other rules s = w ≤ 1, and the minimum is the plain product. Proposals past
    the end are never accepted: S_i(a) = 0 for a > N−i.

    Args:
        log_p: (N,) float64, as in `position_weights`.
        log_q: (N,) float64, as in `position_weights`.
        rule: the acceptance rule.
        num_draft_tokens: K ≥ 0.

    Returns:
        (N, K+1) float64 in [0, 1], not increasing along a; column 0 is 1.

    Raises:
        ValueError: as `position_weights`, or K < 0.
    """
    if num_draft_tokens < 0:
        raise ValueError(f"num_draft_tokens is {num_draft_tokens}: expected 0 or more")
    steps = np.concatenate([_log_steps(log_p, log_q, rule), np.full(num_draft_tokens, -np.inf)])  # (N+K,)
    length = len(log_p)
    windows = steps[np.arange(length)[:, None] + np.arange(num_draft_tokens)]  # (N, K)
    products = np.zeros((length, num_draft_tokens + 1))
    np.cumsum(windows, axis=1, out=products[:, 1:])
    return np.exp(np.minimum.accumulate(products, axis=1))


def expected_rounds(
    log_p: FloatArray,
    log_q: FloatArray,
    rule: Rule,
    num_draft_tokens: int,
    position_acceptance: FloatArray | None = None,
) -> Acceptance:
    """Expected rounds, drafted and accepted tokens of one output, exact for every K, the cut last round included.

    With π_i the probability that a round starts at i: rounds = Σ π_i, drafted = Σ π_i·min(K, N−i) and
    accepted = Σ π_i Σ_{a≥1} S_i(a). Under `greedy` all are whole numbers and equal a live run's. O(N·K).

    Args:
        log_p: (N,) float64, as in `position_weights`; end-of-text included.
        log_q: (N,) float64, as in `position_weights`.
        rule: the acceptance rule.
        num_draft_tokens: K ≥ 0; 0 is plain decoding, one round per token.
        position_acceptance: (N,) float64 in [0, 1], the acceptance `a` of every position from full distributions.

    Raises:
        ValueError: as `survival`, or `position_acceptance` has another length or leaves [0, 1].
    """
    reached_at_least = survival(log_p, log_q, rule, num_draft_tokens)  # (N, K+1)
    starts = _round_starts(reached_at_least)  # (N,)
    position_sum = None
    if position_acceptance is not None:
        acceptance = np.asarray(position_acceptance, dtype=np.float64)
        if acceptance.shape != starts.shape:
            raise ValueError(f"position_acceptance has the shape {acceptance.shape}: expected {starts.shape}")
        if not np.all((acceptance >= -_ROUNDING) & (acceptance <= 1.0 + _ROUNDING)):
            raise ValueError("position_acceptance is not in [0, 1] everywhere: expected probabilities")
        position_sum = float(np.clip(acceptance, 0.0, 1.0).sum())
    left = np.arange(len(starts), 0, -1)  # N−i
    return Acceptance(
        tokens=len(starts),
        rounds=float(starts.sum()),
        drafted=float((starts * np.minimum(num_draft_tokens, left)).sum()),
        accepted=float((starts * reached_at_least[:, 1:].sum(axis=1)).sum()),
        position_sum=position_sum,
    )


def rounds_moments(log_p: FloatArray, log_q: FloatArray, rule: Rule, num_draft_tokens: int) -> tuple[float, float]:
    """Mean and variance of the number of rounds that one output takes, over draft and verification given y.

    Backwards over the renewal process, with s_i(a) the probability that the round at i accepts exactly a:
    M_i = 1 + Σ s_i(a)·M_j and, by the law of total variance, V_i = Σ s_i(a)·(V_j + (1 + M_j − M_i)²), j = i + a + 1.

    Args:
        log_p: (N,) float64, as in `position_weights`; end-of-text included.
        log_q: (N,) float64, as in `position_weights`.
        rule: the acceptance rule; under `greedy` the variance is 0.
        num_draft_tokens: K ≥ 0.

    Returns:
        The mean, `expected_rounds(...).rounds` but for rounding, and the variance, in rounds and rounds squared.

    Raises:
        ValueError: as `survival`.
    """
    stops = _stops(survival(log_p, log_q, rule, num_draft_tokens))  # (N, K+1)
    length, width = stops.shape
    mean, variance = np.zeros(length + width), np.zeros(length + width)
    for i in reversed(range(length)):
        later = slice(i + 1, i + 1 + width)
        mean[i] = 1.0 + stops[i] @ mean[later]
        variance[i] = stops[i] @ (variance[later] + (1.0 + mean[later] - mean[i]) ** 2)
    return float(mean[0]), float(variance[0])


def realised(rounds: Sequence[tuple[int, int]], tokens: int) -> Acceptance:
    """The counts of a live run, comparable with `expected_rounds` on the sequence that it emitted.

    A round that starts at i and accepts a of its d proposals emits a+1 tokens, or the N−i that are left; min(d, N−i)
    proposals and min(a, N−i) acceptances count. Rounds may thus be given as the decoder saw them, proposals past an
    end-of-text and all, or already cut: the result is the same.

    Args:
        rounds: (drafted, accepted) of every round in order.
        tokens: N, the emitted tokens; end-of-text is one of them.

    Raises:
        ValueError: a round accepts more than it drafted, or the rounds do not emit exactly N tokens.
    """
    start = drafted = accepted = 0
    for number, (proposed, kept) in enumerate(rounds, start=1):
        left = tokens - start
        if not 0 <= kept <= proposed:
            raise ValueError(f"round {number} accepted {kept} of {proposed}: expected 0 <= accepted <= drafted")
        if left <= 0:
            raise ValueError(f"round {number} of {len(rounds)} starts after the last of {tokens} tokens")
        drafted += min(proposed, left)
        accepted += min(kept, left)
        start += min(kept + 1, left)
    if start != tokens or tokens < 1:
        raise ValueError(f"{len(rounds)} rounds emit {start} tokens, the output has {tokens}: expected equal, above 0")
    return Acceptance(tokens, float(len(rounds)), float(drafted), float(accepted))


def forecast(acceptance_length: float, t_draft: float, t_plain: float, t_verify: float, num_draft_tokens: int) -> float:
    """Speed-up over plain decoding that follows from an acceptance length on a machine with these times.

    speed-up(K) = acceptance_length(K)·T(1) / (K·t_draft + T(K+1)); 1 at K = 0.

    Args:
        acceptance_length: at this K, in [1, K+1].
        t_draft: seconds of one draft step.
        t_plain: T(1), seconds of one target forward over one position.
        t_verify: T(K+1), seconds of one target forward over K+1 positions; not read at K = 0.
        num_draft_tokens: K ≥ 0.

    Raises:
        ValueError: K < 0, an acceptance length that K cannot have, or a time that is not positive (t_draft: negative).
    """
    if num_draft_tokens < 0:
        raise ValueError(f"num_draft_tokens is {num_draft_tokens}: expected 0 or more")
    if not 1.0 - _ROUNDING <= acceptance_length <= num_draft_tokens + 1.0 + _ROUNDING:
        raise ValueError(f"acceptance length {acceptance_length} at K = {num_draft_tokens}: expected 1 to K + 1")
    if not (0.0 <= t_draft < np.inf and 0.0 < t_plain < np.inf and 0.0 < t_verify < np.inf):
        raise ValueError(f"times t_draft {t_draft}, T(1) {t_plain}, T(K+1) {t_verify}: expected positive seconds")
    if num_draft_tokens == 0:
        return 1.0
    return acceptance_length * t_plain / (num_draft_tokens * t_draft + t_verify)


def best_k(
    acceptance_lengths: Mapping[int, float], t_draft: float, t_plain: float, t_verify: Mapping[int, float]
) -> int:
    """The draft length of the greatest forecast; 0 ("leave speculation off") where none is above plain decoding.

    Args:
        acceptance_lengths: by K; K = 0 is always compared, given or not.
        t_draft: seconds of one draft step.
        t_plain: T(1), seconds of one target forward over one position.
        t_verify: T(K+1) in seconds by K, for every K ≥ 1 of `acceptance_lengths`.

    Returns:
        K, the smaller one of equals.

    Raises:
        ValueError: as `forecast`, or a K whose T(K+1) is missing.
    """
    missing = sorted(k for k in acceptance_lengths if k > 0 and k not in t_verify)
    if missing:
        raise ValueError(f"no time T(K+1) for K = {missing}: measure it, or leave these K out")
    speed_ups = {0: 1.0} | {
        k: forecast(length, t_draft, t_plain, t_verify[k] if k else t_plain, k)
        for k, length in sorted(acceptance_lengths.items())
    }
    return max(speed_ups, key=lambda k: speed_ups[k])


def _log_steps(log_p: FloatArray, log_q: FloatArray, rule: Rule) -> FloatArray:
    """(N,) log of what one more acceptance multiplies S by: above 0 under `block` alone, never NaN."""
    p, q = _checked(log_p, "log p"), _checked(log_q, "log q")
    if p.shape != q.shape:
        raise ValueError(f"log p has {len(p)} positions and log q has {len(q)}: expected the same")
    if rule == "match":
        return q
    if rule == "greedy":
        if not np.all((np.abs(q) <= _ROUNDING) | np.isneginf(q)):
            raise ValueError("log q under `greedy` is neither 0 nor -inf: score at temperature 0, where q is one-hot")
        return np.where(np.isneginf(q), q, 0.0)
    massive = np.isfinite(p) & np.isfinite(q)
    ratio = np.subtract(q, p, out=np.full_like(q, -np.inf), where=massive)
    return ratio if rule == "block" else np.minimum(ratio, 0.0)


def _checked(values: FloatArray, name: str) -> FloatArray:
    """(N,) float64 with −inf for no mass and float32's rounding above 0 taken off."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has the shape {array.shape}: expected (N,) with N >= 1")
    array = np.where(np.isnan(array), -np.inf, array)
    if array.max() > _ROUNDING:
        raise ValueError(f"{name} goes up to {array.max()}: expected log-probabilities, none above 0")
    return np.minimum(array, 0.0)


def _stops(reached_at_least: FloatArray) -> FloatArray:
    """(N, K+1) from S (N, K+1): the probability that a round accepts exactly a proposals."""
    return -np.diff(reached_at_least, axis=1, append=0.0)


def _round_starts(reached_at_least: FloatArray) -> FloatArray:
    """π (N,) from S (N, K+1): the probability that a round starts at each position."""
    length, width = reached_at_least.shape
    stops = _stops(reached_at_least)
    starts = np.zeros(length + width)
    starts[0] = 1.0
    for i in range(length):
        starts[i + 1 : i + 1 + width] += starts[i] * stops[i]
    return starts[:length]


def _ratio(numerator: float, denominator: float, name: str, unit: str) -> float:
    if denominator <= 0:
        raise ValueError(f"no {name} without a {unit}")
    return numerator / denominator
