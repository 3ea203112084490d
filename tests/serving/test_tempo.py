"""The faster way is taken, whichever it is, and the other one is tried again now and then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from draftloop.serving.tempo import REST, TRIAL, Tempo, Way


def steps(tempo: Tempo, number: int, count: int, seconds: Callable[[Way, int], float]) -> list[Way]:
    """So many steps, each of the way that is chosen; a turn gives one token, a batch one of each output."""
    made: list[Way] = []
    for i in range(number):
        way = tempo.choose(count)
        made.append(way)
        tempo.note(way, count, 1 if way == "turns" else count, seconds(way, i))
    return made


@pytest.mark.parametrize(("batch", "faster"), [(0.5, "batch"), (20.0, "turns")])
def test_both_are_tried_and_the_faster_one_is_taken(batch: float, faster: Way) -> None:
    made = steps(Tempo(), REST, 4, lambda way, _: 1.0 if way == "turns" else batch)
    assert set(made[: 2 * TRIAL + 2]) == {"turns", "batch"}
    assert set(made[2 * TRIAL + 2 :]) == {faster}


def test_a_way_that_lost_is_tried_again_and_taken_when_it_has_become_the_faster_one() -> None:
    made = steps(Tempo(), 4 * REST, 4, lambda way, i: 1.0 if way == "turns" else (20.0 if i < REST // 2 else 0.5))
    assert set(made[2 * TRIAL + 2 : REST // 2]) == {"turns"}
    assert Counter(made[3 * REST :])["batch"] > 0.9 * REST


def test_batches_are_measured_by_how_many_take_part() -> None:
    tempo = Tempo()
    cost = {2: 20.0, 8: 0.5}
    few = steps(tempo, 100, 2, lambda way, _: 1.0 if way == "turns" else cost[2])
    many = steps(tempo, 100, 8, lambda way, _: 1.0 if way == "turns" else cost[8])
    assert (few[-1], many[-1]) == ("turns", "batch")
