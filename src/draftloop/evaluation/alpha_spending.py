"""How a chance of error is shared out over attempts whose number nobody knows beforehand. Arithmetic alone."""

from __future__ import annotations

import math


def alpha_of_attempt(attempt: int, alpha: float) -> float:
    """What attempt t on one held-out epoch may spend: alpha·6/(π²t²), which adds up to alpha over all attempts.

    Args:
        attempt: t, counted from 1 among the scored attempts of the epoch.
        alpha: chance per epoch that one that is no better passes, in (0, 1).

    Raises:
        ValueError: `attempt` is below 1, or `alpha` out of range.
    """
    if attempt < 1 or not 0.0 < alpha < 1.0:
        raise ValueError(f"attempt {attempt} at alpha {alpha}: expected attempt 1 or more, alpha between 0 and 1")
    return alpha * 6.0 / (math.pi**2 * attempt**2)
