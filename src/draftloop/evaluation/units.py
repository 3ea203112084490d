"""What the gate judges by itself: every source with enough prompt groups, and all the others together as the rest.

Pooled, small sources cannot hide a loss: a source that loses is judged the same under one name as under ten. It knows
groups and names of sources, not what is measured of them, and nothing of mlx.
"""

from __future__ import annotations

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
    return tuple(sorted(source for source, found in groups.items() if len(found) >= least))


def unit_members(sources: Sequence[str], large: Collection[str]) -> dict[str | None, list[int]]:
    """Indices of the outputs of each unit: the large sources in order of name, then None, the rest, where there is one.

    Args:
        sources: of every output.
        large: sources that are units of their own; one without any output here is none.
    """
    found: dict[str | None, list[int]] = {source: [] for source in sorted(large)}
    rest: list[int] = []
    for i, source in enumerate(sources):
        found.get(source, rest).append(i)
    found[None] = rest
    return {unit: members for unit, members in found.items() if members}


def unit_name(unit: str | None) -> str:
    """A unit in a sentence."""
    return f"the {REST}" if unit is None else f"source {unit}"
