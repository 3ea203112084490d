"""Intervals of ratios of sums over prompt groups, by the cluster bootstrap: reports show them, they decide nothing.

It knows numbers and group labels, not what they count, and nothing of mlx. Outputs of one prompt group are not
independent of each other, so whole groups are drawn again, never single outputs.

Which interval. With few groups the plain percentile bootstrap is too narrow for two reasons: its variance is that of a
population of G, short by (G−1)/G, and it uses normal where Student quantiles are due. Hesterberg's expanded percentile
interval (arXiv 1411.5279) mends both by reading the quantiles at Φ(t_{α/2,G−1}·√(G/(G−1))).
Coverage of lengths / paired differences at 95%, 2,000 data sets, skewed as tests/evaluation/test_intervals.py draws:

    groups               6             12             24             48
    percentile   .86 / .84      .90 / .89      .93 / .91      .94 / .94
    BCa          .86 / .85      .90 / .89      .93 / .92      .94 / .94
    expanded     .93 / .91      .95 / .92      .95 / .93      .95 / .95

BCa corrects skew, which is not what hurts here, and is undefined where all differences are equal: an adapter of zeros.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .estimator import FloatArray

Numbers = Sequence[float] | FloatArray

LEVEL = 0.95
DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided interval about an estimate.

    Attributes:
        estimate: the ratio of sums, or the difference of two, over all groups.
        low: lower end; None where there is no interval, which a report prints as "n/a".
        high: upper end, or None likewise.
        level: the coverage that was asked for, in (0, 1).
        groups: prompt groups that it rests on; with one alone there is no interval.
    """

    estimate: float
    low: float | None
    high: float | None
    level: float
    groups: int


def ratio_interval(
    numerators: Numbers,
    denominators: Numbers,
    groups: Sequence[Hashable],
    *,
    seed: int,
    level: float = LEVEL,
    draws: int = DRAWS,
) -> Interval:
    """Sum of numerators over sum of denominators, with its interval over groups.

    Args:
        numerators: (n,) one number per output: its tokens, say.
        denominators: (n,) positive, one number per output: its rounds, say.
        groups: (n,) prompt group of each output.
        seed: of the resampling; the same seed over as many groups draws the same groups.
        level: coverage, in (0, 1).
        draws: resamples, 1 or more.

    Raises:
        ValueError: no output, unequal lengths, a number that is not finite, a denominator that is not positive,
            or `level` or `draws` out of range.
    """
    columns = group_sums(groups, numerators=numerators, denominators=denominators)
    _require_positive(columns[1])
    return _interval(columns, level=level, draws=draws, seed=seed)


def paired_ratio_difference_interval(
    numerators_a: Numbers,
    denominators_a: Numbers,
    numerators_b: Numbers,
    denominators_b: Numbers,
    groups: Sequence[Hashable],
    *,
    seed: int,
    level: float = LEVEL,
    draws: int = DRAWS,
) -> Interval:
    """Ratio of b minus ratio of a over the same outputs, with its interval from the same resamples for both.

    Where a and b agree in every group the result is 0, 0, 0 exactly, not nearly.

    Args:
        numerators_a: (n,) as in `ratio_interval`, of the one that is compared against: the base draft, say.
        denominators_a: (n,) likewise.
        numerators_b: (n,) of the other on the same outputs: the candidate.
        denominators_b: (n,) likewise.
        groups: (n,) prompt group of each output.
        seed: of the resampling.
        level: coverage, in (0, 1).
        draws: resamples, 1 or more.

    Raises:
        ValueError: as `ratio_interval`.
    """
    columns = group_sums(
        groups,
        numerators_a=numerators_a,
        denominators_a=denominators_a,
        numerators_b=numerators_b,
        denominators_b=denominators_b,
    )
    _require_positive(columns[1])
    _require_positive(columns[3])
    return _interval(columns, level=level, draws=draws, seed=seed)


def group_sums(groups: Sequence[Hashable], **columns: Numbers) -> list[FloatArray]:
    """Sum every column over each group: one (G,) array per column, groups in the order of their first appearance.

    Args:
        groups: (n,) prompt group of each output.
        columns: (n,) finite numbers each, by their names in an error.

    Raises:
        ValueError: no output, unequal lengths, or a number that is not finite.
    """
    if len(groups) == 0:
        raise ValueError("no outputs: expected at least one")
    index = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    members = np.array([index[group] for group in groups])  # (n,)
    sums = []
    for name, values in columns.items():
        array = np.asarray(values, dtype=np.float64)
        if array.shape != members.shape:
            raise ValueError(f"{name} has the shape {array.shape}: expected one number for each of {len(members)}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has a number that is not finite")
        sums.append(np.bincount(members, weights=array).astype(np.float64))
    return sums


def _require_positive(denominators: FloatArray) -> None:
    """Refuse denominators by whose sum some resample would divide by zero."""
    if not (denominators > 0).all():
        raise ValueError("the denominators of a group sum to 0 or less: expected a positive sum in every group")


def _interval(columns: Sequence[FloatArray], *, level: float, draws: int, seed: int) -> Interval:
    """Expanded percentile interval (Hesterberg, arXiv 1411.5279) of `_statistic` over the groups."""
    from scipy.special import ndtr, stdtrit  # slow to import, and commands that compute no interval need none of it

    if not 0.0 < level < 1.0 or draws < 1:
        raise ValueError(f"level {level} and draws {draws}: expected a level between 0 and 1 and 1 draw or more")
    groups = len(columns[0])
    estimate = float(_statistic(columns, np.arange(groups)[None, :])[0])
    if groups == 1:
        return Interval(estimate, None, None, level, groups)
    drawn = np.random.default_rng(seed).integers(0, groups, size=(draws, groups))  # (B, G)
    tail = ndtr(stdtrit(groups - 1, (1.0 - level) / 2.0) * np.sqrt(groups / (groups - 1)))
    low, high = np.quantile(_statistic(columns, drawn), [tail, 1.0 - tail])
    return Interval(estimate, float(low), float(high), level, groups)


def _statistic(columns: Sequence[FloatArray], drawn: npt.NDArray[np.int64]) -> FloatArray:
    """(B,) ratio, or difference of two, of the sums over the drawn groups (B, G).

    Gathered and summed, not multiplied by a matrix of counts: BLAS may add two equal columns in different orders, and a
    difference of nothing would then not be 0.
    """
    sums = [column[drawn].sum(axis=1) for column in columns]
    ratios: list[FloatArray] = [sums[i] / sums[i + 1] for i in range(0, len(sums), 2)]
    return ratios[0] if len(ratios) == 1 else ratios[1] - ratios[0]
