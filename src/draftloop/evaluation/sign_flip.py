"""The test that decides: paired sign flips over prompt groups.

It knows one number per output and its group, not what they count, and nothing of mlx. Where candidate and champion
might as well have changed places on every prompt, the label on a group's pair of scores is a fair coin: the level holds
at any number of groups and for any distribution of the scores. A bootstrap's level does not (see `intervals`). This one
does not hold for a candidate that is equal on average alone, a little better on most prompts and much worse on a few:
a dozen prompts cannot show that; `benchmarks/gate.py` measures how often such a candidate passes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from .estimator import FloatArray
from .intervals import Numbers, group_sums

EXACT_GROUPS = 40  # two halves of 2^20 sums, 8 MiB each
LEAST_DRAWS = 20_000
DRAWS_PER_ALPHA = 20  # so that 20 hits or so decide at p = alpha
_CHUNK = 1 << 16  # draws held at once
_ROUNDING = 1e-10  # of the summed |difference|: sums this close to a tie are ties


@dataclass(frozen=True, slots=True)
class SignFlip:
    """The result of a sign-flip test.

    Attributes:
        p_value: chance under random labels of a sum at least as large, in (0, 1]; 1 where nothing differs.
        exact: whether every assignment of signs was counted, not a seeded sample of them.
        assignments: sign vectors that were counted, the identity included; groups that do not differ take no sign.
        groups: prompt groups, those that do not differ included.
    """

    p_value: float
    exact: bool
    assignments: int
    groups: int


def sign_flip_test(differences: Numbers, groups: Sequence[Hashable], *, alpha: float, seed: int) -> SignFlip:
    """One-sided paired test that the sum of `differences` is larger than random labels make it.

    The gate compares ratios of sums, and this is the test of them. Of N tokens let the champion take C rounds and the
    candidate R. Swapping the labels of some groups keeps N and C + R = S, and turns C − R into the signed sum
    T = Σ ±d_g. So R = (S − T)/2, C = (S + T)/2, and N/R − N/C = 4·N·T/(S² − T²), which rises with T for |T| < S: the
    assignments that give at least the observed difference of ratios are those that give at least the observed sum.

    A signed sum reaches the observed one where the flipped groups add up to at most 0, so subsets are summed. Up to 40
    groups that differ, every subset is: two halves, one sorted, the other looked up in it. Beyond, seeded draws, and
    p = (1 + hits)/(1 + draws), which keeps the level (Phipson & Smyth, arXiv 1603.05766). Ties are hits, and so is what
    rounding cannot tell from a tie.

    Args:
        differences: (n,) champion's rounds minus candidate's on the same output, finite.
        groups: (n,) prompt group of each output; a group flips as one.
        alpha: the level that p is compared with, in (0, 1): sets the number of draws, at least 20/alpha.
        seed: of the draws.

    Raises:
        ValueError: no output, unequal lengths, a number that is not finite, or `alpha` out of range.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha {alpha}: expected a level between 0 and 1")
    (sums,) = group_sums(groups, differences=differences)  # (G,)
    tie = _ROUNDING * float(np.abs(np.asarray(differences, dtype=np.float64)).sum())
    active = sums[sums != 0.0]
    if len(active) <= EXACT_GROUPS:
        half = len(active) // 2
        low, high = (np.sort(_subset_sums(part)) for part in (active[:half], active[half:]))
        hits = int(np.searchsorted(low, tie - high, side="right").sum())  # of all subsets; the empty one adds up to 0
        assignments = 1 << len(active)
        return SignFlip(hits / assignments, True, assignments, len(sums))
    draws = max(LEAST_DRAWS, math.ceil(DRAWS_PER_ALPHA / alpha))
    hits = _drawn_up_to(active, tie, draws, np.random.default_rng(seed))
    return SignFlip((1 + hits) / (1 + draws), False, 1 + draws, len(sums))


def _subset_sums(values: FloatArray) -> FloatArray:
    """(2^m,) the sum of every subset of `values` (m,)."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums, sums + value])
    return sums


def _drawn_up_to(values: FloatArray, bound: float, draws: int, rng: np.random.Generator) -> int:
    """How many of `draws` random subsets of `values` add up to `bound` or less.

    A random byte says which of eight values are in, and a table of 256 sums says what that adds.
    """
    tables = [_subset_sums(values[i : i + 8]) for i in range(0, len(values), 8)]
    hits = 0
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        total = np.zeros(size)
        for table in tables:
            total += table[rng.integers(0, len(table), size=size, dtype=np.uint16)]
        hits += int((total <= bound).sum())
    return hits
