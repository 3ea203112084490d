"""Blocks hold every token once, and their sums keep what a running sum over a vocabulary loses."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from draftloop.decoding.row_blocks import block_shape, in_blocks, row_sums


@pytest.mark.parametrize(
    ("vocabulary", "shape"), [(1, (1, 1)), (2_048, (64, 32)), (151_936, (1_187, 128)), (262_144, (512, 512))]
)
def test_a_block_is_a_divisor_near_the_root_where_there_is_one(vocabulary: int, shape: tuple[int, int]) -> None:
    assert block_shape(vocabulary) == shape


def test_every_vocabulary_has_blocks_of_about_its_root() -> None:
    for vocabulary in [*range(1, 3_000), 50_257, 128_259, 151_669]:
        blocks, width = block_shape(vocabulary)
        assert 0 <= blocks * width - vocabulary < width
        assert blocks + width <= 6 * math.sqrt(vocabulary)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 151), (2, 3, 96)])
def test_blocks_are_the_row_and_zeros(shape: tuple[int, ...]) -> None:
    weights = mx.random.uniform(shape=shape, key=mx.random.key(0))
    flat = np.array(in_blocks(weights)).reshape(*shape[:-1], -1)
    np.testing.assert_array_equal(flat[..., : shape[-1]], np.array(weights))
    assert not flat[..., shape[-1] :].any()


@pytest.mark.parametrize("vocabulary", [2_048, 50_257, 151_936, 262_144])
@pytest.mark.parametrize("peak", [0.0, 0.9])
def test_a_sum_of_many_small_weights_is_right_to_2e_6(vocabulary: int, peak: float) -> None:
    weights = np.full(vocabulary, (1 - peak) / vocabulary, np.float32)
    weights[0] += peak
    assert row_sums(mx.array(weights)).item() == pytest.approx(weights.sum(dtype=np.float64), rel=2e-6)
