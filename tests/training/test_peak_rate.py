"""The search for a peak rate ends between worse ones, the rule is in proportion, and a version hands its rate on."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from draftloop.training.peak_rate import (
    FACTOR,
    HIGHEST,
    MOST_TRIALS,
    SHARE,
    PeakRate,
    RateTrial,
    best_trial,
    is_enclosed,
    least_planned,
    next_rate,
    rate_by_width,
    rate_of_parent,
    trial_steps,
)
from draftloop.training.validation import ValidationScores


def scores(loss: float) -> ValidationScores:
    return ValidationScores(loss, 1.0 - loss, 10, {})


def search(guess: float, outcome: Callable[[float], ValidationScores | None]) -> list[RateTrial]:
    """The trials of a test in which each rate gives this."""
    trials: list[RateTrial] = []
    while (rate := next_rate(guess, trials)) is not None:
        trials.append(RateTrial(rate, outcome(rate)))
    return trials


def peaked(at: float) -> Callable[[float], ValidationScores]:
    return lambda rate: scores(abs(math.log(rate / at)))


@pytest.mark.parametrize(
    ("width", "scale", "rate"), [(192, 2.0, 6e-3), (576, 2.0, 2e-3), (896, 2.0, 1.3e-3), (896, 10.0, 2.6e-4)]
)
def test_the_rule_keeps_rate_times_scale_times_width_as_it_was_fitted(width, scale, rate):
    assert rate_by_width(width, scale) == rate


def test_the_rule_gives_no_rate_that_could_not_be_configured():
    assert rate_by_width(8, 1e-3) == HIGHEST


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (6e-3, [6e-3, 3e-3, 1.2e-2]),
        (3e-3, [6e-3, 3e-3, 1.5e-3]),
        (1.5e-3, [6e-3, 3e-3, 1.5e-3, 7.5e-4]),
        (1.2e-2, [6e-3, 3e-3, 1.2e-2, 2.4e-2]),
    ],
)
def test_the_search_goes_outwards_until_the_best_rate_is_between_worse_ones(best, tried):
    trials = search(6e-3, peaked(best))
    assert [trial.rate for trial in trials] == tried
    assert best_trial(trials).rate == best
    assert is_enclosed(trials)


@pytest.mark.parametrize("best", [1e-9, 0.9])
def test_the_search_ends_although_the_best_rate_is_far_away(best):
    trials = search(6e-3, peaked(best))
    assert len(trials) == MOST_TRIALS
    assert not is_enclosed(trials)


def test_no_rate_above_the_highest_is_tried():
    assert max(trial.rate for trial in search(0.4, peaked(5.0))) == 0.8


def test_a_rate_that_diverges_loses_to_every_lower_one():
    trials = search(6e-3, lambda rate: None if rate > 2e-3 else peaked(1.5e-3)(rate))
    assert best_trial(trials).rate == 1.5e-3
    everywhere = search(6e-3, lambda _: None)
    assert [trial.rate for trial in everywhere] == [6e-3 / FACTOR**i for i in range(MOST_TRIALS)]


def test_what_is_printed_of_a_rate_is_the_rate():
    for width in range(64, 8192, 37):
        for power in range(-4, 5):
            rate = rate_by_width(width, 2.0) * FACTOR**power
            assert float(f"{rate:g}") == rate


def test_all_trials_together_take_no_more_than_their_share_of_the_steps():
    for planned in range(1, 3000):
        assert MOST_TRIALS * trial_steps(planned) <= SHARE * planned
    assert trial_steps(least_planned()) > 0 == trial_steps(least_planned() - 1)


def test_one_line_says_what_every_rate_gave():
    trials = search(6e-3, lambda rate: None if rate > 6e-3 else scores(0.41 if rate == 6e-3 else 0.5))
    assert PeakRate(6e-3, "trials", trials, 9).describe() == (
        "learning rate 0.006: the best of 3, each tried for 9 steps; loss after them: "
        "0.003 0.5, 0.006 0.41, 0.012 diverged"
    )
    assert PeakRate(2e-3, "width", why="45 steps are too few").describe() == (
        "learning rate 0.002, by the draft's width: 45 steps are too few"
    )


@pytest.mark.parametrize(
    ("metrics", "given", "rate"),
    [
        ({"peak_rate": {"rate": 4e-3, "by": "trials"}, "slowed": 0}, "auto", 4e-3),
        ({"peak_rate": {"rate": 4e-3, "by": "parent"}, "slowed": 2}, "auto", 1e-3),
        ({"peak_rate": {"rate": 4e-3, "by": "parent"}, "slowed": 3}, "auto", None),  # below a quarter of the rule's
        ({"peak_rate": {"rate": 1e-4, "by": "trials"}, "slowed": 0}, "auto", 1e-4),  # but not for being halved
        ({"peak_rate": {"rate": 4e-3, "by": "width"}, "slowed": 0}, "auto", None),  # nobody measured it
        ({"peak_rate": None}, 2e-3, 2e-3),  # somebody gave it
        ({"peak_rate": None, "slowed": 1}, 2e-3, 1e-3),
        ({}, 6e-3, 6e-3),  # of a version made before rates were measured
        ({}, None, None),
    ],
)
def test_a_version_hands_on_the_rate_that_was_chosen_halved_as_often_as_it_was(metrics, given, rate):
    config = {} if given is None else {"training": {"learning_rate": given}}
    found = rate_of_parent("v0003", metrics, config, rule=3e-3)
    assert (None if found is None else found.rate) == rate
    if found is not None:
        assert found.by == "parent"
        assert found.describe().startswith(f"learning rate {rate:g}, that of v0003")
