"""The test that decides: against all assignments written out, its level where labels are chance, and its ties."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from draftloop.evaluation import sign_flip
from draftloop.evaluation.sign_flip import SignFlip, sign_flip_test
from draftloop.evaluation.units_and_levels import alpha_of_attempt

FloatArray = npt.NDArray[np.float64]
PValue = Callable[[list[float]], float]

reproducible = settings(max_examples=60, deadline=None, derandomize=True)
whole = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=10)  # ties and zeros galore
decimal = st.lists(st.sampled_from([0.1, 0.2, 0.3, -0.1, -0.2, -0.3, 0.0]), min_size=1, max_size=10)
smooth = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=10)


def p_of(differences: list[float], **options: float) -> float:
    """Every difference a group of its own."""
    settings_ = {"alpha": 0.05, "seed": 0} | options
    return sign_flip_test(
        differences, range(len(differences)), alpha=settings_["alpha"], seed=int(settings_["seed"])
    ).p_value


def enumerated(differences: list[float], tie: float = 1e-9) -> float:
    """The definition: the share of all sign vectors whose sum reaches the observed one."""
    signs = np.array(list(itertools.product([1.0, -1.0], repeat=len(differences))))
    observed = sum(differences)
    return float((signs @ np.array(differences) >= observed - tie * sum(map(abs, differences))).mean())


def two_sided(differences: list[float]) -> float:
    signs = np.array(list(itertools.product([1.0, -1.0], repeat=len(differences))))
    return float((np.abs(signs @ np.array(differences)) >= abs(sum(differences)) - 1e-9).mean())


def without_ties(differences: list[float]) -> float:
    signs = np.array(list(itertools.product([1.0, -1.0], repeat=len(differences))))
    return float(((signs @ np.array(differences) > sum(differences)).sum() + 1) / len(signs))


def to_the_last_bit(differences: list[float]) -> float:
    return enumerated(differences, tie=0.0)


@given(differences=st.one_of(whole, decimal, smooth))
@reproducible
def test_p_is_the_share_of_all_assignments_that_reach_the_observed_sum(differences: list[float]) -> None:
    assert p_of(differences) == pytest.approx(enumerated(differences), abs=1e-12)


@pytest.mark.parametrize(
    ("wrong", "differences"),
    [
        (two_sided, [1.0, 2.0, 3.0, -0.5]),
        (without_ties, [1.0, 1.0, 1.0, -1.0]),
        (to_the_last_bit, [0.1, 0.2, -0.3, 0.4, 0.3]),  # 0.1 + 0.2 − 0.3 is not 0 in binary
    ],
)
def test_the_comparison_with_all_assignments_catches_a_wrong_test(wrong: PValue, differences: list[float]) -> None:
    assert wrong(differences) != pytest.approx(enumerated(differences), abs=1e-3)
    assert p_of(differences) == pytest.approx(enumerated(differences), abs=1e-12)


@given(rows=st.lists(st.tuples(st.integers(20, 90), st.integers(10, 40), st.integers(10, 40)), min_size=1, max_size=8))
@reproducible
def test_the_test_of_the_sum_is_the_test_of_the_ratio_of_sums(rows: list[tuple[int, int, int]]) -> None:
    """Labels of champion and candidate swapped in every way, and tokens / rounds computed anew each time."""
    tokens = sum(row[0] for row in rows)

    def gain(swapped: tuple[bool, ...]) -> float:
        champion = sum(b if swap else a for swap, (_, a, b) in zip(swapped, rows, strict=True))
        candidate = sum(a if swap else b for swap, (_, a, b) in zip(swapped, rows, strict=True))
        return tokens / candidate - tokens / champion

    gains = [gain(swapped) for swapped in itertools.product([False, True], repeat=len(rows))]
    assert p_of([float(a - b) for _, a, b in rows]) == np.mean([g >= gains[0] - 1e-12 for g in gains])


@pytest.mark.parametrize("groups", [1, 12, 40, 41, 200])
def test_no_difference_gives_one_exactly(groups: int) -> None:
    assert sign_flip_test([0.0] * groups, range(groups), alpha=0.05, seed=0) == SignFlip(1.0, True, 1, groups)


def test_twelve_groups_that_all_gain_give_one_in_4096() -> None:
    assert sign_flip_test(range(1, 13), range(12), alpha=0.05, seed=0) == SignFlip(2.0**-12, True, 4096, 12)
    assert p_of([-float(value) for value in range(1, 13)]) == 1.0


@given(differences=st.one_of(whole, smooth), where=st.integers(0, 9), more=st.floats(0.0, 1e3))
@reproducible
def test_p_does_not_rise_when_one_group_gains_more(differences: list[float], where: int, more: float) -> None:
    raised = list(differences)
    raised[where % len(raised)] += more
    assert p_of(raised) <= p_of(differences)


def test_the_unit_of_every_difference_is_free() -> None:
    differences = [0.3, -0.1, 0.7, 0.2, -0.4, 0.1]
    assert p_of([1e-9 * value for value in differences]) == p_of([1e9 * value for value in differences])


def test_a_group_flips_as_one() -> None:
    """Nine outputs of each of three prompts are worth three signs; as prompts of their own they would be 27."""
    differences = np.array([1.0, 2.0, -0.5])
    repeated = sign_flip_test(np.tile(differences, 9), list("abc") * 9, alpha=0.05, seed=0)
    assert repeated == sign_flip_test(differences, list("abc"), alpha=0.05, seed=0)
    assert sign_flip_test(np.tile(differences, 9), range(27), alpha=0.05, seed=0).p_value < repeated.p_value / 10


def test_groups_without_a_difference_change_nothing_but_their_count() -> None:
    with_zeros = sign_flip_test([1.0, 0.0, 2.0, 0.0], range(4), alpha=0.05, seed=0)
    assert with_zeros == SignFlip(0.25, True, 4, 4)


def drawn(differences: FloatArray, monkeypatch: pytest.MonkeyPatch, seed: int) -> SignFlip:
    with monkeypatch.context() as patched:
        patched.setattr(sign_flip, "EXACT_GROUPS", 0)
        return sign_flip_test(differences, range(len(differences)), alpha=0.001, seed=seed)


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.5])
def test_drawn_and_exact_agree_on_thirty_groups(shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(7).standard_normal(30) + shift
    exact = sign_flip_test(differences, range(30), alpha=0.001, seed=0)
    assert (exact.exact, exact.assignments) == (True, 2**30)
    values = [drawn(differences, monkeypatch, seed) for seed in range(5)]
    error = np.sqrt(exact.p_value * (1.0 - exact.p_value) / (5 * 20_000)) + 1 / 20_000
    assert not any(value.exact for value in values)
    assert abs(np.mean([value.p_value for value in values]) - exact.p_value) < 3.5 * error


def test_ties_count_in_draws_too(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.array([1.0] * 6 + [-1.0] * 6)  # half of all assignments and half of the ties: 0.613
    assert drawn(differences, monkeypatch, 0).p_value == pytest.approx(binom.sf(5, 12, 0.5), abs=0.015)


@pytest.mark.parametrize(("alpha", "draws"), [(0.05, 20_000), (0.001, 20_000), (0.0001, 200_000)])
def test_beyond_forty_groups_there_are_twenty_draws_for_each_alpha_and_never_a_zero(alpha: float, draws: int) -> None:
    found = sign_flip_test(np.ones(41), range(41), alpha=alpha, seed=0)
    assert found == SignFlip(1 / (1 + draws), False, 1 + draws, 41)


def test_the_same_seed_draws_the_same_and_another_seed_others() -> None:
    differences = list(np.random.default_rng(3).standard_normal(60) + 0.1)
    assert p_of(differences, seed=1) == p_of(differences, seed=1) != p_of(differences, seed=2)


@pytest.mark.parametrize("groups", [8, 15, 60])
def test_chance_labels_pass_no_more_often_than_the_level(groups: int) -> None:
    """Heavy tails, 1,500 data sets: a test at its level stays below this bound but once in a thousand times."""
    rng = np.random.default_rng(groups)
    sets = rng.standard_t(1.5, (1500, groups))
    for alpha in (0.05, 0.01):
        passed = sum(p_of(list(row), alpha=alpha, seed=number) <= alpha for number, row in enumerate(sets))
        assert passed <= binom.ppf(0.999, len(sets), alpha)


def test_the_attempts_of_an_epoch_never_spend_more_than_alpha() -> None:
    spent = [alpha_of_attempt(attempt, 0.05) for attempt in range(1, 2001)]
    assert spent[0] == pytest.approx(0.0304, abs=5e-5)
    assert spent[1] == spent[0] / 4
    assert 0.0499 < sum(spent) < 0.05


@pytest.mark.parametrize(("attempt", "alpha"), [(0, 0.05), (-1, 0.05), (1, 0.0), (1, 1.0), (1, float("nan"))])
def test_an_attempt_or_alpha_out_of_range_is_refused(attempt: int, alpha: float) -> None:
    with pytest.raises(ValueError, match="expected attempt 1 or more"):
        alpha_of_attempt(attempt, alpha)


@pytest.mark.parametrize(
    ("differences", "groups", "alpha", "message"),
    [
        ([], [], 0.05, "no outputs"),
        ([1.0], ["a", "b"], 0.05, "one number for each of 2"),
        ([1.0, float("nan")], ["a", "b"], 0.05, "not finite"),
        ([1.0, 2.0], ["a", "b"], 0.0, "between 0 and 1"),
    ],
)
def test_unusable_numbers_are_refused(differences: list[float], groups: list[str], alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sign_flip_test(differences, groups, alpha=alpha, seed=0)
