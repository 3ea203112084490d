"""Whether counts fit a law, with a bound that an honest sampler keeps on any machine.

Seeds are fixed, but another rounding turns a few draws and with them every p-value: on a new machine each is a new draw
of what is uniform between 0 and 1. All tests together look at fewer than 200 of them, so that one in 5,000 machines
would see an honest sampler below FITS by chance. A broken one has to come out below BROKEN, far away from it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2_contingency, chisquare

FITS = 1e-6
BROKEN = 1e-12
_ENOUGH = 5  # expected in a cell, or chi-square says little


def p_value(observed: ArrayLike, weights: ArrayLike) -> float:
    """Of the hypothesis that the counts were drawn with these weights; what has no weight must not have been drawn."""
    counts, expected = np.asarray(observed, np.float64), np.asarray(weights, np.float64)
    expected = expected * (counts.sum() / expected.sum())  # in float64: SciPy refuses sums that differ by 1e-8
    assert counts[expected == 0].sum() == 0, "what has no weight was drawn"
    return float(chisquare(*_pooled(np.stack([counts, expected]), expected)).pvalue)


def same_law(one: Counter[Any], other: Counter[Any]) -> float:
    """p-value of the hypothesis that both were drawn from one distribution."""
    keys = sorted(one | other, key=repr)
    table = np.array([[found[key] for key in keys] for found in (one, other)], np.float64)
    fewer = min(one.total(), other.total()) / table.sum()
    return float(chi2_contingency(_pooled(table, table.sum(axis=0) * fewer)).pvalue)


def _pooled(table: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of cells; those with little expected together, and if they still are too few, beside the next larger one."""
    order = np.argsort(expected)
    together = int(np.searchsorted(np.cumsum(expected[order]), _ENOUGH)) + 1  # so many make one cell
    together = max(together, int((expected < _ENOUGH).sum()))
    first = table[:, order[:together]].sum(axis=1, keepdims=True)
    return np.concatenate([first, table[:, order[together:]]], axis=1)
