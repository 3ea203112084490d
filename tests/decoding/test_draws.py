"""A draw has the law of its weights to 1e-5, computed and not sampled; and no token is out of its reach."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from chance import FITS, p_value
from numpy.typing import NDArray

from draftloop.data.records import Sampler
from draftloop.decoding.draws import draw_tokens, exponentials_per_draw
from draftloop.decoding.random_stream import RandomStream
from draftloop.decoding.row_blocks import block_shape, in_blocks, row_sums
from draftloop.decoding.sampling_filters import sampling_probs

WIDTHS = [2_048, 50_257, 151_936, 262_144]
RACES = 4 * 2.0**-22  # what two races may differ by from the law of the sums and weights that they are given
SMALLEST, GREATEST = 2.0**-64, 100.0  # of the exponentials


def softmax_of(log_weights: NDArray[np.float64]) -> NDArray[np.float32]:
    weights = np.exp(log_weights - log_weights.max())
    return (weights / weights.sum()).astype(np.float32)


def kinds(width: int) -> dict[str, NDArray[np.float32]]:
    """Weights float32 (V,): broad ones, peaked ones, and ones that a running sum would lose."""
    random, rank = np.random.default_rng(width), np.arange(width)
    noise = random.standard_normal(width)
    peaked = np.full(width, 0.1 / (width - 1))
    peaked[width // 3] = 0.9
    tail = -np.log(1e12) * rank / width
    return {
        "all equal": softmax_of(np.zeros(width)),
        "broad": softmax_of(0.5 * noise),
        "model-like": softmax_of(3 * noise),
        "one of 0.9, the others equal": peaked.astype(np.float32),
        "one of 0.9, the others not": softmax_of(np.where(rank == 0, 3.0 + np.log(width), noise)),
        "zipf": softmax_of(random.permutation(-np.log1p(rank))),
        "down to 1e-12": softmax_of(random.permutation(tail)),
        "down to 1e-12, in order": softmax_of(tail),
        "most without weight": np.where(rank % 97 == 5, softmax_of(noise), 0).astype(np.float32),
    }


def law(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """The probability of each token, but for RACES: by the float32 sums of blocks that the code races with."""
    blocks = in_blocks(mx.array(weights))
    sums, inside = np.array(row_sums(blocks), np.float64), np.array(blocks, np.float64)
    totals = inside.sum(axis=-1, keepdims=True)
    of_blocks = (sums / sums.sum())[:, None]
    shares = np.divide(inside, totals, out=np.zeros_like(inside), where=totals > 0)
    return (of_blocks * shares).reshape(-1)[: len(weights)]


def share_of_each(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    return weights.astype(np.float64) / weights.sum(dtype=np.float64)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_computed_law_is_within_1e_5_of_the_weights_and_no_token_above_1e_9_is_lost(width: int) -> None:
    for kind, weights in kinds(width).items():
        computed, true = law(weights), share_of_each(weights)
        assert np.abs(computed - true).sum() / 2 + RACES < 1e-5, kind
        assert computed[true > 1e-9].min() > 0.99e-9, kind
        assert (computed[weights == 0] == 0).all(), kind


@pytest.mark.parametrize("width", WIDTHS)
def test_one_running_sum_as_it_was_drawn_from_before_fails_the_same_bound(width: int) -> None:
    weights = kinds(width)["down to 1e-12"]
    sums = np.array(mx.cumsum(mx.array(weights)), np.float64)
    computed = np.diff(sums, prepend=0.0) / sums[-1]
    assert (computed[share_of_each(weights) > 1e-9] == 0).any()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_a_distribution_has_the_mass_1(width: int, spread: float) -> None:
    logits = mx.random.normal((2, width), key=mx.random.key(width)) * spread
    found = np.array(sampling_probs(logits, Sampler(1.0, 1.0, 0.0, 0, 0), width), np.float64)
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, atol=2e-6)
    wide = np.exp(np.array(logits, np.float64))
    assert np.abs(found - wide / wide.sum(axis=-1, keepdims=True)).sum(axis=-1).max() / 2 < 2e-6


@pytest.mark.parametrize("width", WIDTHS)
def test_whichever_token_has_weight_is_drawn_where_its_exponentials_are_small(width: int) -> None:
    blocks, block_width = block_shape(width)
    for kind, weights in kinds(width).items():
        true = share_of_each(weights)
        heavy = np.flatnonzero(true > 1e-9)
        tokens = np.unique([*heavy[np.argsort(true[heavy])[:20]], *heavy[:: max(1, len(heavy) // 20)]])
        exponentials = np.ones((len(tokens), exponentials_per_draw(width)), np.float32)
        exponentials[np.arange(len(tokens)), tokens // block_width] = 1e-10
        exponentials[np.arange(len(tokens)), blocks + tokens % block_width] = 1e-10
        rows = mx.broadcast_to(mx.array(weights), (len(tokens), width))
        assert draw_tokens(rows, mx.array(exponentials)).tolist() == tokens.tolist(), kind


@pytest.mark.parametrize("width", [1, 2, 5, 96, 151, *WIDTHS])
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_a_token_without_weight_is_not_drawn_at_either_end_of_the_exponentials(width: int, scale: float) -> None:
    for token in {0, width // 2, width - 1}:
        weights, size = np.zeros(width, np.float32), exponentials_per_draw(width)
        weights[token] = scale
        blocks, block_width = block_shape(width)
        exponentials = np.full((3, size), SMALLEST, np.float32)
        exponentials[1:] = GREATEST
        exponentials[2] = np.where(np.arange(size) % 2, SMALLEST, GREATEST)
        exponentials[0, [token // block_width, blocks + token % block_width]] = GREATEST  # all others are favoured
        assert draw_tokens(mx.array(np.tile(weights, (3, 1))), mx.array(exponentials)).tolist() == [token] * 3


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3)])
def test_every_row_is_drawn_by_its_own_exponentials_whatever_the_shape(shape: tuple[int, ...]) -> None:
    random = RandomStream(1)
    exponentials = mx.array(random.exponentials(*shape, exponentials_per_draw(151)))
    weights = mx.array(random.uniforms(*shape, 151))
    found = draw_tokens(weights, exponentials)
    assert found.shape == shape
    rows = zip(weights.reshape(-1, 151), exponentials.reshape(-1, exponentials.shape[-1]), strict=True)
    assert found.reshape(-1).tolist() == [draw_tokens(*row).item() for row in rows]


@pytest.mark.parametrize("weights", [[0, 3, 0, 1, 0], [1e-3, 1, 1, 5, 0, 2, 2], [*range(40), 0, 0, 0]])
def test_draws_from_a_stream_follow_the_weights(weights: list[float]) -> None:
    width, samples = len(weights), 40_000
    exponentials = mx.array(RandomStream(2).exponentials(samples, exponentials_per_draw(width)))
    found = np.array(draw_tokens(mx.broadcast_to(mx.array(weights, mx.float32), (samples, width)), exponentials))
    assert p_value(np.bincount(found, minlength=width), weights) > FITS
