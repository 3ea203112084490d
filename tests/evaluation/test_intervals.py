"""The cluster bootstrap: what it estimates, what it covers, and where it says that there is no interval."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftloop.evaluation.intervals import Interval, paired_ratio_difference_interval, ratio_interval

FloatArray = npt.NDArray[np.float64]


def outputs(seed: int, groups: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Tokens, rounds of a and rounds of b of one output a group; lengths skewed, b's about 0.15 above a's."""
    rng = np.random.default_rng(seed)
    tokens = np.where(rng.random(groups) < 0.3, rng.integers(5, 97, groups), 96).astype(np.float64)
    length = 1.0 + rng.lognormal(-0.2, 0.35, groups)
    return tokens, tokens / length, tokens / (length + rng.gamma(1.0, 0.15, groups))


def ends(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def width(interval: Interval) -> float:
    low, high = ends(interval)
    return high - low


def test_the_estimate_is_the_ratio_of_sums_and_not_the_mean_of_ratios() -> None:
    interval = ratio_interval([10.0, 2.0], [2.0, 2.0], ["a", "b"], seed=0)
    assert interval.estimate == 3.0
    assert (interval.level, interval.groups) == (0.95, 2)


def test_the_difference_is_b_minus_a() -> None:
    tokens, rounds_a, rounds_b = outputs(1, 20)
    interval = paired_ratio_difference_interval(tokens, rounds_a, tokens, rounds_b, range(20), seed=0)
    assert interval.estimate == tokens.sum() / rounds_b.sum() - tokens.sum() / rounds_a.sum()
    low, high = ends(interval)
    assert 0.0 < low < interval.estimate < high


@given(
    rows=st.lists(st.tuples(st.floats(0.0, 1e3), st.floats(0.1, 1e3), st.integers(0, 9)), min_size=1, max_size=40),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_no_difference_in_any_group_is_exactly_zero(rows: list[tuple[float, float, int]], seed: int) -> None:
    numerators, denominators, groups = (list(column) for column in zip(*rows, strict=True))
    interval = paired_ratio_difference_interval(
        numerators, denominators, list(numerators), list(denominators), groups, seed=seed, draws=50
    )
    ends_of_it = (None, None) if interval.groups == 1 else (0.0, 0.0)
    assert (interval.estimate, interval.low, interval.high) == (0.0, *ends_of_it)


def test_the_smallest_real_difference_is_not_reported_as_zero() -> None:
    tokens, rounds, _ = outputs(2, 12)
    changed = rounds.copy()
    changed[3] *= 1.0 + 1e-9
    interval = paired_ratio_difference_interval(tokens, rounds, tokens, changed, range(12), seed=0)
    assert interval.estimate < 0.0
    assert ends(interval)[0] < 0.0


def test_one_group_alone_has_an_estimate_and_no_interval() -> None:
    assert ratio_interval([4.0, 6.0], [2.0, 3.0], ["a", "a"], seed=0) == Interval(2.0, None, None, 0.95, 1)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    tokens, rounds, _ = outputs(3, 30)
    first, again, other = (ratio_interval(tokens, rounds, range(30), seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_splitting_an_output_within_its_group_changes_nothing() -> None:
    whole = ratio_interval([8.0, 3.0, 5.0], [4.0, 2.0, 2.0], ["a", "b", "c"], seed=0)
    split = ratio_interval([6.0, 2.0, 3.0, 5.0], [1.0, 3.0, 2.0, 2.0], ["a", "a", "b", "c"], seed=0)
    assert whole == split


def test_repeated_outputs_of_the_same_prompts_do_not_narrow_the_interval() -> None:
    """And treated as prompts of their own they would: the grouping is what holds the interval honest."""
    tokens, rounds, _ = outputs(4, 16)
    once = ratio_interval(tokens, rounds, range(16), seed=0)
    repeated = ratio_interval(np.tile(tokens, 9), np.tile(rounds, 9), list(range(16)) * 9, seed=0)
    ungrouped = ratio_interval(np.tile(tokens, 9), np.tile(rounds, 9), range(144), seed=0)
    assert width(repeated) == pytest.approx(width(once), rel=1e-9)
    assert width(ungrouped) < 0.5 * width(once)


def test_pairing_removes_what_both_share() -> None:
    tokens, rounds_a, rounds_b = outputs(5, 40)
    paired = paired_ratio_difference_interval(tokens, rounds_a, tokens, rounds_b, range(40), seed=0)
    alone = [ratio_interval(tokens, rounds, range(40), seed=0) for rounds in (rounds_a, rounds_b)]
    assert width(paired) < 0.7 * np.hypot(width(alone[0]), width(alone[1]))


def test_a_higher_level_gives_a_wider_interval() -> None:
    tokens, rounds, _ = outputs(6, 24)
    widths = [width(ratio_interval(tokens, rounds, range(24), seed=0, level=level)) for level in (0.5, 0.8, 0.95, 0.99)]
    assert widths == sorted(widths)
    assert len(set(widths)) == 4


def test_the_difference_covers_the_truth_about_as_often_as_it_says_at_twelve_groups() -> None:
    """1,000 data sets have a standard error of 0.008; a plain percentile interval covers 0.89 and would fail."""
    tokens, rounds_a, rounds_b = outputs(0, 500_000)
    truth = tokens.sum() / rounds_b.sum() - tokens.sum() / rounds_a.sum()
    covered = 0
    for seed in range(1, 1001):
        tokens, rounds_a, rounds_b = outputs(seed, 12)
        low, high = ends(
            paired_ratio_difference_interval(tokens, rounds_a, tokens, rounds_b, range(12), seed=seed, draws=400)
        )
        covered += low <= truth <= high
    assert 0.905 <= covered / 1000 <= 0.975


@pytest.mark.parametrize(
    ("numerators", "denominators", "groups", "message"),
    [
        ([], [], [], "no outputs"),
        ([1.0], [1.0, 1.0], ["a", "b"], "one number for each of 2"),
        ([1.0, float("nan")], [1.0, 1.0], ["a", "b"], "not finite"),
        ([1.0, 1.0], [1.0, 0.0], ["a", "b"], "positive sum"),
    ],
)
def test_unusable_numbers_are_refused(
    numerators: list[float], denominators: list[float], groups: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ratio_interval(numerators, denominators, groups, seed=0)


@pytest.mark.parametrize(("level", "draws"), [(0.0, 100), (1.0, 100), (95.0, 100), (0.95, 0)])
def test_a_level_or_a_number_of_draws_out_of_range_is_refused(level: float, draws: int) -> None:
    with pytest.raises(ValueError, match="expected a level between"):
        ratio_interval([1.0, 2.0], [1.0, 1.0], ["a", "b"], seed=0, level=level, draws=draws)
