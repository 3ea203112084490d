"""The transforms are mlx-lm's own filters in mlx-lm's order, and leave a distribution."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p
from tiny import sampler

from draftloop.data.records import Sampler
from draftloop.decoding import sampling_filters
from draftloop.decoding.sampling_filters import sampling_log_probs

LOGITS = mx.random.normal((5, 40), key=mx.random.key(3)) * 3


def by_mlx_lm(logits: mx.array, settings: Sampler) -> np.ndarray:
    """What mlx-lm's sampler draws from, as probabilities."""
    log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    if 0 < settings.top_p < 1:
        log_probs = apply_top_p(log_probs, settings.top_p)
    if settings.min_p:
        log_probs = apply_min_p(log_probs, settings.min_p)
    if settings.top_k:
        log_probs = apply_top_k(log_probs, settings.top_k)
    return np.array(mx.softmax(log_probs * (1 / settings.temperature), axis=-1))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.05])
@pytest.mark.parametrize("top_k", [0, 1, 7])
def test_every_combination_of_filters_gives_the_distribution_that_mlx_lm_samples_from(
    temperature: float, top_p: float, min_p: float, top_k: int
) -> None:
    settings = sampler(temperature, top_p, min_p, top_k)
    ours = np.exp(np.array(sampling_log_probs(LOGITS, settings, 40)))
    np.testing.assert_allclose(ours, by_mlx_lm(LOGITS, settings), atol=1e-5)
    np.testing.assert_allclose(ours.sum(axis=-1), 1.0, atol=1e-5)


def test_the_temperature_comes_after_top_p_and_not_before() -> None:
    logits = mx.log(mx.array([[0.6, 0.25, 0.15]]))
    # At temperature 1 the first id alone reaches 0.55; a temperature of 3 applied first would have needed two.
    ours = np.exp(np.array(sampling_log_probs(logits, sampler(3.0, top_p=0.55), 3)))
    np.testing.assert_allclose(ours, [[1.0, 0.0, 0.0]], atol=1e-6)


def test_temperature_zero_is_all_mass_on_the_argmax() -> None:
    log_probs = np.array(sampling_log_probs(LOGITS, sampler(0.0), 40))
    assert (np.exp(log_probs).sum(axis=-1) == 1.0).all()
    assert (log_probs.argmax(axis=-1) == np.array(LOGITS).argmax(axis=-1)).all()


def test_ids_past_the_shared_width_get_no_row_and_no_mass() -> None:
    narrow = sampling_log_probs(LOGITS, sampler(1.0), 30)
    assert narrow.shape == (5, 30)
    np.testing.assert_allclose(np.array(mx.exp(narrow).sum(axis=-1)), 1.0, atol=1e-5)


def test_half_precision_logits_are_read_as_float32() -> None:
    log_probs = sampling_log_probs(LOGITS.astype(mx.float16), sampler(0.7, top_p=0.9), 40)
    assert log_probs.dtype == mx.float32


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.9999])
@pytest.mark.parametrize("spread", [0.0, 1.0, 6.0], ids=["all alike", "flat", "peaked"])
def test_a_nucleus_found_in_the_top_of_a_vocabulary_is_that_of_all_of_it(
    top_p: float, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = mx.round(4 * spread * mx.random.normal((12, 6_000), key=mx.random.key(3))) / 4  # with many ties
    logits = mx.where(mx.arange(6_000) % 7 == 0, -mx.inf, logits)
    mixed = mx.concatenate([logits, 10 * logits])
    asked = sampler(1.0, top_p=top_p)
    of_top = [np.array(sampling_log_probs(rows, asked, 6_000)) for rows in (logits, mixed)]
    monkeypatch.setattr(sampling_filters, "_PART", 1.0)
    of_all = [np.array(sampling_log_probs(rows, asked, 6_000)) for rows in (logits, mixed)]
    for found, expected in zip(of_top, of_all, strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(of_top[1][:12], of_top[0])  # whatever rows are beside it
