"""A stream gives the same numbers again, in the ranges that draws and verdicts rely on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from draftloop.decoding.random_stream import RandomStream


class Extreme:
    """A generator whose numbers are at an end of their range."""

    def __init__(self, value: float) -> None:
        self._value = value

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, self._value)

    standard_exponential = random


def test_a_seed_gives_its_numbers_again_and_another_seed_or_stream_gives_others() -> None:
    def numbers(seed: int, stream: int = 0) -> list[float]:
        random = RandomStream(seed, stream)
        return [*random.uniforms(3).tolist(), *random.exponentials(2, 2).reshape(-1).tolist()]

    assert numbers(5) == numbers(5)
    assert not set(numbers(5)) & (set(numbers(6)) | set(numbers(5, 1)))


def test_more_rows_at_once_are_the_same_numbers() -> None:
    one, other = RandomStream(3), RandomStream(3)
    together = one.exponentials(4, 5)
    np.testing.assert_array_equal(together, [other.exponentials(5) for _ in range(4)])


def test_both_kinds_are_float32_and_have_their_law() -> None:
    random = RandomStream(8)
    for numbers, law in ((random.uniforms(50_000), "uniform"), (random.exponentials(50_000), "expon")):
        assert numbers.dtype == np.float32
        assert kstest(numbers.astype(np.float64), law).pvalue > 1e-6


@pytest.mark.parametrize("end", [0.0, 1 - 2.0**-53])
def test_a_uniform_is_below_1_and_an_exponential_above_0_at_the_ends_too(end: float) -> None:
    random = RandomStream(0)
    random._generator = Extreme(end)  # type: ignore[assignment]
    assert 0 <= random.uniforms(2).max() < 1
    assert random.exponentials(2).min() > 1e-30
