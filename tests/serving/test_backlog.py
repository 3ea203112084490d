"""A backlog gives what was put in, in order, and never holds more than it may."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st
from mortal import HANGS

from draftloop.serving.backlog import Backlog

MOST, MOST_WEIGHT = 4, 10


@given(st.lists(st.one_of(st.integers(1, 14), st.none())))
def test_it_is_bounded_in_number_and_weight_and_keeps_the_order(steps: list[int | None]) -> None:
    """A number is an offer of that weight, None takes two."""
    backlog: Backlog[tuple[int, int]] = Backlog(MOST, MOST_WEIGHT)
    held: list[tuple[int, int]] = []
    for number, weight in enumerate(steps):
        if weight is None:
            assert backlog.take(2) == held[:2]
            held = held[2:]
            continue
        fits = not held or (len(held) < MOST and sum(one[1] for one in held) + weight <= MOST_WEIGHT)
        assert backlog.offer((number, weight), weight) == fits
        held += [(number, weight)] * fits
        assert len(backlog) == len(held)


def test_who_waits_gets_it_all_and_then_the_end() -> None:
    backlog: Backlog[int] = Backlog(1000, 1000)
    got: list[list[int]] = []

    def read() -> None:
        while found := backlog.wait(7):
            got.append(found)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(500):
        assert backlog.offer(number, 1)
    backlog.close()
    reader.join(HANGS)
    assert not reader.is_alive()
    assert [number for found in got for number in found] == list(range(500))
    assert max(map(len, got)) <= 7
    assert not backlog.offer(1, 1)
