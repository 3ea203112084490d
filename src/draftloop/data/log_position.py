"""A mark: the ids of the latest generations at one moment, a place in the log that survives deletions from it.

A count of generations does not survive them: where people delete the log, or a part of it, the count points past its
end, and everything new looks old. Where all ids of a mark are gone, everything that is there counts as new.
"""

from __future__ import annotations

from collections.abc import Sequence

KEPT = 32  # so that the deletion of a few generations does not lose the place

Mark = tuple[str, ...]


def mark_of(ids: Sequence[str]) -> Mark:
    """The mark at the end of `ids`, the ids of all generations in the order of the log."""
    return tuple(ids[-KEPT:])


def position_after(mark: Sequence[str], ids: Sequence[str]) -> int:
    """Index in `ids` of the first generation after the mark; 0 where nothing of the mark is left (`is_gone`)."""
    known = set(mark)
    return next((i + 1 for i in reversed(range(len(ids))) if ids[i] in known), 0)


def is_gone(mark: Sequence[str], ids: Sequence[str]) -> bool:
    """Whether the mark has ids, and none of them is left."""
    return bool(mark) and set(mark).isdisjoint(ids)
