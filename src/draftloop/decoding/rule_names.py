"""The acceptance rules by name. What each does stands in `acceptance_rules.py`, what it accepts in the estimator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Rule = Literal["greedy", "rejection", "block", "match"]
SAMPLING: tuple[Rule, ...] = ("rejection", "block", "match")  # the rules above temperature 0; greedy is the one at 0


def one_of(rules: Sequence[str]) -> str:
    """Their names for a message: `rejection, block or match`."""
    *others, last = rules
    return f"{', '.join(others)} or {last}" if others else last
