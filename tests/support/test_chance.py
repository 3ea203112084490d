"""The check of what a sampler drew: honest ones pass it on any machine, and broken ones are far from that."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from chance import BROKEN, FITS, p_value, same_law

WEIGHTS = np.array([0.4, 0.3, 0.2, 0.0999, 0.0001])


def drawn(weights: np.ndarray, seed: int, count: int = 2_000) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(count, weights / weights.sum())


def test_honest_draws_fit_and_their_p_values_are_those_of_chance() -> None:
    found = np.array([p_value(drawn(WEIGHTS, seed), WEIGHTS) for seed in range(1_000)])
    assert found.min() > FITS
    assert 0.03 < (found < 0.05).mean() < 0.07


def test_what_sums_to_one_in_float32_alone_is_taken() -> None:
    rounded = np.full(7, np.float32(1 / 7))  # SciPy refuses expected counts of another sum
    assert abs(rounded.sum(dtype=np.float64) - 1) > 1e-8
    assert p_value(drawn(np.ones(7), 0), rounded) > FITS


def test_one_draw_of_what_hardly_ever_comes_is_no_alarm() -> None:
    assert p_value([800, 600, 400, 199, 1], [0.4, 0.3, 0.2, 0.1, 1e-9]) > FITS


def test_draws_of_other_weights_are_far_from_fitting() -> None:
    assert p_value(drawn(WEIGHTS + 0.1, 0), WEIGHTS) < BROKEN


def test_what_has_no_weight_must_not_come() -> None:
    with pytest.raises(AssertionError, match="no weight"):
        p_value([1_000, 1], [1.0, 0.0])


def test_two_samples_of_one_law_agree_and_those_of_two_do_not() -> None:
    def counted(weights: np.ndarray, seed: int, count: int) -> Counter[int]:
        return Counter(dict(enumerate(drawn(weights, seed, count).tolist())))

    few = counted(WEIGHTS, 1, 300)
    assert same_law(few, counted(WEIGHTS, 2, 2_000)) > FITS
    assert same_law(few, counted(WEIGHTS[::-1], 2, 2_000)) < BROKEN
