"""How many steps fit into a limit: all that takes time counts, and what hardly changes moves nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.training.time_limit import CALM, RECENT, WRITING, Pace, TimeLimit, Timetable, describe_schedule, refitted

PLANNED = 505
STEPS_ALONE = Timetable(PLANNED, None, 10_000)


def pace(step: float, **others: float) -> Pace:
    return Pace([step], **others)


def test_nobody_knows_before_a_step_was_measured():
    assert STEPS_ALONE.fits(0, 100.0, Pace(), validated=False) is None
    assert STEPS_ALONE.seconds_to(9, 0, Pace(), validated=False) is None


def test_steps_alone_fit_as_often_as_they_go_into_the_time():
    assert STEPS_ALONE.fits(2, 100.0, pace(10.0), validated=False) == 12
    assert STEPS_ALONE.fits(2, 99.9, pace(10.0), validated=False) == 11
    assert STEPS_ALONE.fits(2, 0.0, pace(10.0), validated=False) == 2
    assert STEPS_ALONE.fits(2, -1.0, pace(10.0), validated=False) == 2
    assert STEPS_ALONE.fits(2, 1e9, pace(10.0), validated=False) == PLANNED
    assert STEPS_ALONE.fits(2, 1e-9, pace(0.0), validated=False) == PLANNED


def test_the_pace_is_the_mean_of_the_latest_steps():
    found = Pace()
    for seconds in (1000.0, *([2.0] * (RECENT // 2)), *([4.0] * (RECENT // 2))):
        found.note_step(seconds)
    assert found.step == 3.0


@pytest.mark.parametrize(
    ("between", "fitting"),
    [
        ({}, 32),
        ({"validation": 10.0}, 29),  # after steps 10 and 20, and at the end
        ({"saving": 5.0}, 30),  # after steps 10 and 20
        ({"writing": 60.0}, 26),
        ({"validation": 10.0, "saving": 5.0, "writing": 48.0}, 22),  # validated before the texts are written, too
    ],
)
def test_validations_checkpoints_and_new_texts_are_counted_in(between, fitting):
    table = Timetable(PLANNED, 10 if "validation" in between else None, 10, (15,) if "writing" in between else ())
    assert table.fits(2, 300.0, pace(10.0, **between), validated=True) == fitting


def test_texts_that_were_never_written_count_with_the_most_that_they_may_take():
    table = Timetable(PLANNED, None, 10_000, (10,))
    left_then = 300.0 - 8 * 10.0
    assert table.fits(2, 300.0, pace(10.0), validated=True) == 10 + int(left_then * (1 - WRITING) / 10.0)
    assert table.fits(2, 300.0, pace(10.0, writing=1e9), validated=True) == table.fits(2, 300.0, pace(10.0), True)


def slow(table: Timetable, step: int, left: float, found: Pace, validated: bool) -> int:
    """The same step by step, as long as what comes after it fits too."""
    best, spent = step, 0.0
    assert found.step is not None
    for here in range(step, table.planned):
        if here % table.checkpoints == 0:
            spent += found.saving or 0.0
        if table.validations and (here % table.validations == 0 or here in table.stages):
            spent += 0.0 if validated and here == step else found.validation or 0.0
        if here in table.stages:
            spent += min(found.writing or 0.0, max(0.0, WRITING * (left - spent)))
        spent += found.step
        if spent + (found.validation or 0.0 if table.validations else 0.0) > left:
            return best
        best = here + 1
    return best


SIXTEENTHS = st.integers(0, 160).map(lambda n: n / 16)  # sums of them are exact


@given(
    step=st.integers(0, 30),
    planned=st.integers(31, 90),
    left=st.integers(0, 4000).map(lambda n: n / 16),
    a_step=SIXTEENTHS.filter(bool),
    validation=SIXTEENTHS,
    saving=SIXTEENTHS,
    every=st.none() | st.integers(1, 20),
    checkpoints=st.integers(1, 20),
    texts=st.sets(st.integers(0, 60)),
    validated=st.booleans(),
)
def test_counting_from_border_to_border_is_counting_step_by_step(
    step, planned, left, a_step, validation, saving, every, checkpoints, texts, validated
):
    table = Timetable(planned, every, checkpoints, tuple(sorted(texts)))
    found = pace(a_step, validation=validation, saving=saving, writing=0.0)
    assert table.fits(step, left, found, validated) == slow(table, step, left, found, validated)


@given(
    step=st.integers(0, 30),
    end=st.integers(30, 90),
    a_step=SIXTEENTHS.filter(bool),
    validation=SIXTEENTHS,
    writing=SIXTEENTHS,
    every=st.none() | st.integers(1, 20),
    texts=st.sets(st.integers(0, 60)),
)
def test_what_the_steps_that_fit_take_fits_and_one_more_does_not(step, end, a_step, validation, writing, every, texts):
    table = Timetable(1000, every, 7, tuple(sorted(texts)))
    found = pace(a_step, validation=validation, saving=0.5, writing=writing)
    taken = table.seconds_to(end, step, found, validated=True)
    assert taken is not None
    if writing == 0.0:
        assert table.fits(step, taken, found, validated=True) == end
    assert table.seconds_to(end + 1, step, found, validated=True) > taken


def test_a_pace_that_hardly_changes_moves_nothing_and_one_that_does_is_followed():
    left = 200
    assert refitted(None, 300, 100) == 300
    assert refitted(300, 300 + int(CALM * left), 100) == 300
    assert refitted(300, 301 + int(CALM * left), 100) == 301 + int(CALM * left)
    assert refitted(300, 299 - int(CALM * left), 100) == 299 - int(CALM * left)


def test_in_the_last_twenty_steps_it_is_followed_exactly():
    assert refitted(110, 111, 91) == 111
    assert refitted(110, 109, 91) == 109


def test_what_fits_is_said_in_one_line():
    limit = TimeLimit.of(3.0)
    assert describe_schedule(3.1234, 58, 505, limit) == (
        "3.1 s a step: 58 of 505 planned steps fit into 3 minutes; the schedule ends there"
    )
    assert describe_schedule(0.01234, 505, 505, limit) == "0.012 s a step: all 505 planned steps fit into 3 minutes"
    assert describe_schedule(3.0, 78, 505, TimeLimit.more(1.0, 58, 200.0)) == (
        "3 s a step: 20 more, 78 of 505 planned steps in all, fit into 1 more minute; the schedule ends there"
    )


def test_more_minutes_count_from_the_step_at_which_they_are_given():
    assert TimeLimit.more(2.0, 58, 200.0).seconds == 320.0
    assert TimeLimit.of(None).seconds == math.inf
    assert str(TimeLimit.of(None)) == "no time limit"
