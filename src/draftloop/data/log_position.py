"""A place in the log that outlives what is deleted from it: the ids of the latest generations at one moment.

A count of generations is no such place: where people delete the log, or a part of it, the count points past its end and
everything new looks old. Of ids that are gone nothing is remembered; what is there then counts as new.
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
    """Whether there was something at the mark, and nothing of it is left."""
    return bool(mark) and set(mark).isdisjoint(ids)
