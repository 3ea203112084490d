from __future__ import annotations

import pytest
from tiny import sampler

from draftloop.config import Training
from draftloop.training.course import Course
from draftloop.training.examples import Example
from draftloop.training.plan import make_plan


def texts(count: int, name: str) -> list[Example]:
    return [Example(f"{name}{i}", "s", (1, 2) + (3,) * (3 + i % 5), 2, sampler()) for i in range(count)]


FAILURES, MORE = texts(12, "failure"), texts(24, "again")
SETTINGS = Training(batch_size=4, epochs=5)


def nothing() -> None:
    """Nobody wants to stop."""


class Asked:
    """Gives new texts, and counts how often it is asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, check) -> list[Example]:
        check()
        self.times += 1
        return MORE


def names(window) -> list[str]:
    return [example.record_id for batch in window.micro_batches for example in batch]


def test_without_new_texts_a_course_is_the_plan_of_the_failures():
    course = Course(FAILURES, {}, SETTINGS)
    plan = make_plan(FAILURES, {}, SETTINGS)
    assert tuple(course.window(step, nothing) for step in range(course.steps)) == plan.windows


def test_new_texts_change_no_number_of_steps_and_no_step_before_they_come():
    asked = Asked()
    course, plan = Course(FAILURES, {}, SETTINGS, asked), make_plan(FAILURES, {}, SETTINGS)
    assert course.steps == len(plan.windows)
    assert tuple(course.window(step, nothing) for step in range(course.turn)) == plan.windows[: course.turn]
    assert asked.times == 0
    assert course.turn >= 3  # an epoch


def test_from_then_on_failures_and_new_texts_are_gone_through_alike():
    asked = Asked()
    course = Course(FAILURES, {}, SETTINGS, asked)
    found = [name for step in range(course.turn, course.steps) for name in names(course.window(step, nothing))]
    assert asked.times == 1
    assert sorted(found[:36]) == sorted(example.record_id for example in [*FAILURES, *MORE])


def test_a_resumed_course_goes_on_in_the_same_order():
    whole, resumed = Course(FAILURES, {}, SETTINGS, Asked()), Course(FAILURES, {}, SETTINGS, Asked())
    windows = [whole.window(step, nothing) for step in range(whole.steps)]
    for step in reversed(range(whole.steps)):
        assert resumed.window(step, nothing) == windows[step]


def test_a_stop_while_texts_are_made_leaves_the_course_as_it_was():
    course = Course(FAILURES, {}, SETTINGS, Asked())

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        course.window(course.turn, stop)
    again = Course(FAILURES, {}, SETTINGS, Asked())
    assert course.window(course.turn, nothing) == again.window(again.turn, nothing)


def test_it_knows_what_was_trained_on_so_far():
    course = Course(FAILURES, {}, SETTINGS, Asked())
    assert course.record_ids(1) == set(names(course.window(0, nothing)))
    course.window(course.turn, nothing)
    assert course.record_ids(course.steps) > {example.record_id for example in FAILURES}
