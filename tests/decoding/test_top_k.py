"""The top-k tokens are those of a full sort, and the tail is the mass of all others."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from tiny import sampler

from draftloop.data.teacher_top_k import TopK, check_top_k
from draftloop.decoding.sampling_filters import sampling_log_probs
from draftloop.decoding.top_k import to_numpy, top_k_tokens

WIDTH = 50


def rows_of(count: int = 7, width: int = WIDTH, **filters: float) -> mx.array:
    logits = 3 * mx.random.normal((count, width), key=mx.random.key(4))
    return sampling_log_probs(logits, sampler(**filters), width)  # type: ignore[arg-type]


def found_in(log_probs: mx.array, k: int) -> TopK:
    return to_numpy(top_k_tokens(mx.exp(log_probs), k))


@pytest.mark.parametrize(
    ("width", "k"), [(50, 1), (50, 2), (50, 8), (50, 49), (50, 50), (1_000, 8), (2_048, 32), (2_049, 32), (9_973, 1)]
)
def test_they_are_the_first_of_a_full_sort(width: int, k: int) -> None:
    """Whether they are looked for in all ids or in the blocks with the greatest."""
    log_probs = rows_of(width=width)
    found = found_in(log_probs, k)
    everything = np.array(log_probs)
    order = np.argsort(-everything, axis=1)
    np.testing.assert_array_equal(found.tokens, order[:, :k])
    np.testing.assert_allclose(found.log_probs, np.take_along_axis(everything, order, axis=1)[:, :k], atol=1e-5)
    rest = np.exp(np.take_along_axis(everything.astype(np.float64), order, axis=1)[:, k:]).sum(axis=1)
    np.testing.assert_allclose(found.tail, rest, rtol=1e-4)
    check_top_k(found)


def test_a_tail_far_below_the_rounding_of_one_is_kept() -> None:
    log_probs = mx.array([[0.0, -30.0, -31.0, -32.0]])
    expected = np.exp([-31.0]) + np.exp([-32.0])
    np.testing.assert_allclose(found_in(log_probs, 2).tail, expected, rtol=1e-5)
    assert np.float32(1.0) - np.exp(np.float32([0.0, -30.0])).sum() == 0.0  # what the difference would say


@pytest.mark.parametrize("width", [WIDTH, 2_049])
@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.05}, {"min_p": 0.5}])
def test_ids_without_mass_are_0_and_leave_no_tail(filters: dict[str, float], width: int) -> None:
    log_probs = rows_of(width=width, **filters)
    assert mx.max(top_k_tokens(mx.exp(log_probs), 20)[0]).item() < width  # before they are told as 0
    found = found_in(log_probs, 20)
    without = ~np.isfinite(found.log_probs)
    assert without.any()
    assert (found.tokens[without] == 0).all()
    assert (found.tail == 0).all()
    np.testing.assert_allclose(np.exp(found.log_probs).sum(axis=1), 1.0, rtol=1e-5)


def test_a_one_hot_row_is_its_argmax() -> None:
    log_probs = rows_of(temperature=0.0)
    found = found_in(log_probs, 1)
    np.testing.assert_array_equal(found.tokens[:, 0], np.array(log_probs).argmax(axis=1))
    assert (found.log_probs == 0).all()
    assert (found.tail == 0).all()


@pytest.mark.parametrize("width", [WIDTH, 1_001])
def test_equal_log_probabilities_are_each_taken_once(width: int) -> None:
    found = found_in(mx.full((2, width), -np.log(width)), 10)
    assert all(len(set(ids.tolist())) == 10 and max(ids) < width for ids in found.tokens)
    np.testing.assert_allclose(found.tail, 1 - 10 / width, rtol=1e-4)
