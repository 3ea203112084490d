"""Whether a pair pays on a machine: the acceptance per position that it would take to be as fast as the target alone.

Pure. Where every proposal is accepted with the same probability a, the acceptance length is 1 + a + … + a^K (Leviathan
et al., arXiv 2211.17192, formula 1), and the forecast follows from it. Real acceptances differ from position to
position, so what follows is about right, and is said to be so.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..decoding.draft_length import LatencyProfile
from .estimator import forecast

_HALVINGS = 40


@dataclass(frozen=True)
class BreakEven:
    """What a pair gives at an acceptance, and what it would take.

    Attributes:
        acceptance: per position, of this draft.
        forecast: highest speed-up over the target alone at that acceptance, at any K >= 1.
        needed: least acceptance with which the highest speed-up is 1; None where none is enough.
    """

    acceptance: float
    forecast: float
    needed: float | None

    @property
    def pays(self) -> bool:
        """Whether decoding with the draft is faster than without."""
        return self.forecast > 1.0

    @property
    def warning(self) -> str | None:
        """One sentence where it does not pay; None where it does."""
        if self.pays:
            return None
        now = f"at {self.acceptance:.2f} accepted per position the best draft length gives {self.forecast:.2f} times"
        if self.needed is None:
            return (
                f"this pair cannot pay on the machine that was measured: {now} the speed of the target alone, and with "
                "everything accepted it would not be faster; take a smaller draft, or a larger target"
            )
        return (
            f"this pair does not pay yet: {now} the speed of the target alone, and it would take about "
            f"{self.needed:.2f}; without a draft it is faster until then"
        )


def break_even(acceptance: float, profile: LatencyProfile) -> BreakEven:
    """What a pair with that acceptance per position, in [0, 1], gives on the machine of a latency profile."""
    return BreakEven(acceptance, _best(acceptance, profile), _needed(profile))


def _needed(profile: LatencyProfile) -> float | None:
    low, high = 0.0, 1.0
    if _best(high, profile) < 1.0:
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _best(middle, profile) >= 1.0 else (middle, high)
    return high


def _best(acceptance: float, profile: LatencyProfile) -> float:
    speed_ups, length = [], 1.0
    for k, t_verify in enumerate(profile.t_target[1:], 1):
        length += acceptance**k
        speed_ups.append(forecast(length, profile.t_draft, profile.t_target[0], t_verify, k))
    return max(speed_ups)
