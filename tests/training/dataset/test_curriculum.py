from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from tiny import sampler

from draftloop.config import Training
from draftloop.training.dataset.batch_plan import make_batch_plan
from draftloop.training.dataset.curriculum import Curriculum
from draftloop.training.dataset.examples import Example


def texts(count: int, name: str) -> list[Example]:
    return [Example(f"{name}{i}", "s", (1, 2) + (3,) * (3 + i % 5), 2, sampler()) for i in range(count)]


FAILURES = texts(12, "failure")
SETTINGS = Training(batch_size=4, epochs=5)


def nothing() -> bool:
    """Nobody wants to stop, and there is time."""
    return False


def course_of(settings: Training, *rest, failures=FAILURES) -> Curriculum:
    return Curriculum(make_batch_plan(failures, {}, settings), failures, {}, settings, *rest)


class Asked:
    """Gives new texts, and counts how often it is asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, stage, enough) -> list[Example]:
        enough()
        self.times += 1
        return texts(24, f"again{stage}-")


def names(window) -> list[str]:
    return [example.record_id for batch in window.micro_batches for example in batch]


def test_without_new_texts_a_course_is_the_plan_of_the_failures():
    course = course_of(SETTINGS)
    plan = make_batch_plan(FAILURES, {}, SETTINGS)
    assert tuple(course.window(step, nothing) for step in range(course.steps)) == plan.windows


def test_new_texts_change_no_number_of_steps_and_no_step_before_they_come():
    asked = Asked()
    course, plan = course_of(SETTINGS, 1, asked), make_batch_plan(FAILURES, {}, SETTINGS)
    assert course.steps == len(plan.windows)
    assert tuple(course.window(step, nothing) for step in range(course.begins[0])) == plan.windows[: course.begins[0]]
    assert asked.times == 0
    assert course.begins[0] >= 3  # an epoch


def test_from_then_on_failures_and_new_texts_are_gone_through_alike():
    asked = Asked()
    course = course_of(SETTINGS, 1, asked)
    found = [name for step in range(course.begins[0], course.steps) for name in names(course.window(step, nothing))]
    assert asked.times == 1
    assert sorted(found[:36]) == sorted(example.record_id for example in [*FAILURES, *texts(24, "again0-")])


def test_a_resumed_course_goes_on_in_the_same_order():
    whole, resumed = course_of(SETTINGS, 1, Asked()), course_of(SETTINGS, 1, Asked())
    windows = [whole.window(step, nothing) for step in range(whole.steps)]
    for step in reversed(range(whole.steps)):
        assert resumed.window(step, nothing) == windows[step]


def test_a_stop_while_texts_are_made_leaves_the_course_as_it_was():
    course = course_of(SETTINGS, 1, Asked())

    def stop() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        course.window(course.begins[0], stop)
    again = course_of(SETTINGS, 1, Asked())
    assert course.window(course.begins[0], nothing) == again.window(again.begins[0], nothing)


def test_it_knows_what_was_trained_on_so_far():
    course = course_of(SETTINGS, 1, Asked())
    assert course.times_given(1) == Counter(names(course.window(0, nothing)))
    windows = [course.window(step, nothing) for step in range(course.steps)]
    assert course.times_given(course.steps) == Counter(name for window in windows for name in names(window))


def test_each_stage_has_new_texts_and_they_are_asked_for_when_it_begins():
    asked = Asked()
    course = course_of(Training(batch_size=4, epochs=12), 3, asked)
    for stage, (begin, end) in enumerate(pairwise([*course.begins, course.steps])):
        found = {name for step in range(begin, end) for name in names(course.window(step, nothing))}
        assert asked.times == stage + 1
        assert {name.split("-")[0] for name in found if name.startswith("again")} == {f"again{stage}"}
    assert len(course.begins) == 3


def test_no_two_stages_draw_the_same_order():
    course = course_of(Training(batch_size=4, epochs=12), 2, lambda _stage, _enough: ())
    length = min(course.begins[1] - course.begins[0], course.steps - course.begins[1])
    first, second = ([names(course.window(begin + i, nothing)) for i in range(length)] for begin in course.begins)
    assert first != second


def test_an_epoch_is_a_pass_over_the_failures_as_if_they_were_alone():
    course = course_of(Training(batch_size=4, epochs=12), 3, Asked())
    plan = make_batch_plan(FAILURES, {}, Training(batch_size=4, epochs=12))
    shown = [course.window(step, nothing).epoch for step in range(course.steps)]
    assert shown == [window.epoch for window in plan.windows]


def test_more_stages_than_steps_are_left_out():
    course = course_of(Training(batch_size=4, epochs=2), 50, Asked())
    assert len(course.begins) <= course.steps
    assert [course.window(step, nothing) for step in range(course.steps)]


def test_what_is_foreseen_is_as_long_and_has_as_many_labels_as_what_comes():
    """The longest answer may follow the longest prompt, and fill a micro-batch as no failure does."""
    talkative = Example("talkative", "s", (1,) + (3,) * 30, 1, sampler())
    told = [Example("told", "s", (1,) * 40 + (3,), 40, sampler()), talkative, *FAILURES]

    def answers(_stage, _enough) -> list[Example]:
        return [Example(f"again{i}", "s", (1,) * 40 + (3,) * 30, 40, sampler()) for i in range(9)]

    def largest(batches) -> tuple[int, int]:
        return max(len(e.inputs) for b in batches for e in b), max(sum(len(e.labels) for e in b) for b in batches)

    settings = Training(batch_size=4, batch_tokens=70, epochs=5)
    alone, course = course_of(settings, failures=told), course_of(settings, 1, answers, failures=told)
    windows = [course.window(step, nothing) for step in range(course.steps)]
    length, labels = largest([batch for window in windows for batch in window.micro_batches])
    assert alone.foreseen == course.plan.micro_batches == course.foreseen[:-1]
    assert largest(alone.foreseen)[0] < length == largest(course.foreseen)[0]
    assert largest(alone.foreseen)[1] < labels <= 70 <= largest(course.foreseen)[1]
