"""A mark finds its place again whatever was deleted, and claims none where all of it is gone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from draftloop.data.log_position import KEPT, is_gone, mark_of, position_after


@given(st.integers(0, 100), st.integers(0, 50), st.integers(0, 200), st.integers(0, KEPT - 1))
def test_what_came_after_is_found_whatever_was_deleted_before(before: int, after: int, cut: int, lost: int) -> None:
    old, new = ([f"{kind}{i}" for i in range(n)] for kind, n in (("old", before), ("new", after)))
    mark = mark_of(old)
    kept = old[min(cut, max(0, before - KEPT)) : max(0, before - lost)] if before else []  # some at both ends are gone
    position = position_after(mark, kept + new)
    assert (kept + new)[position:] == new if set(kept) & set(mark) else position == 0


def test_where_all_of_the_log_is_new_nothing_is_old() -> None:
    assert position_after(mark_of([f"{i}" for i in range(500)]), ["a", "b"]) == 0
    assert position_after((), ["a", "b"]) == 0


def test_a_mark_is_short() -> None:
    assert len(mark_of([f"{i}" for i in range(500)])) == KEPT


def test_a_mark_is_gone_where_there_was_something_and_nothing_is_left() -> None:
    assert is_gone(("a", "b"), ["c"])
    assert is_gone(("a", "b"), [])
    assert not is_gone(("a", "b"), ["b", "c"])
    assert not is_gone((), ["c"])
