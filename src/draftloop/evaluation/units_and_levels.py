"""The units that gate and looks test, and the level of each test. Arithmetic alone.

A unit is a source with enough prompt groups, or the rest: all other sources together. Pooled, small sources cannot hide
a loss, and a source that loses is tested alike under one name and under ten.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

REST = "rest"


def large_sources(members: Iterable[tuple[str, str]], least: int) -> tuple[str, ...]:
    """The sources that are units of their own, in order of name.

    Args:
        members: (group, source) of every output.
        least: prompt groups that a source needs.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    for group, source in members:
        groups[source].add(group)
    return tuple(sorted(source for source, own in groups.items() if len(own) >= least))


def unit_members(sources: Sequence[str], large: Collection[str]) -> dict[str | None, list[int]]:
    """Indices of the outputs of each unit: the large sources in order of name, then None, the rest, where there is one.

    Args:
        sources: of every output.
        large: sources that are units of their own; one without any output here is none.
    """
    units: dict[str | None, list[int]] = {source: [] for source in sorted(large)}
    rest: list[int] = []
    for i, source in enumerate(sources):
        units.get(source, rest).append(i)
    units[None] = rest
    return {unit: members for unit, members in units.items() if members}


def unit_name(unit: str | None) -> str:
    """A unit in a sentence."""
    return f"the {REST}" if unit is None else f"source {unit}"


def alpha_of_attempt(attempt: int, alpha: float) -> float:
    """The level of attempt t, of a number of attempts that nobody knows beforehand.

    It is alpha·6/(π²t²), which adds up to alpha over all attempts.

    Args:
        attempt: t, counted from 1 among the scored attempts on one held-out epoch.
        alpha: chance per epoch that a candidate that is no better passes, in (0, 1).

    Raises:
        ValueError: `attempt` is below 1, or `alpha` out of range.
    """
    if attempt < 1 or not 0.0 < alpha < 1.0:
        raise ValueError(f"attempt {attempt} at alpha {alpha}: expected attempt 1 or more, alpha between 0 and 1")
    return alpha * 6.0 / (math.pi**2 * attempt**2)
