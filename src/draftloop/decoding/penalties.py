"""Penalties on tokens that were there before, as numbers. Imports no mlx.

repetition   a token of the prompt or the output: a logit above 0 is divided by it, one below multiplied (Keskar et
             al. 2019, arXiv 1909.05858)
presence     a token of the output: subtracted once
frequency    a token of the output: subtracted for each time
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Penalties:
    """How much a token that was there before loses; by default nothing."""

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0

    @property
    def are_off(self) -> bool:
        """Whether they change nothing."""
        return self == NO_PENALTIES


NO_PENALTIES = Penalties()
