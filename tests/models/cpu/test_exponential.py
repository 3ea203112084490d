"""exp and softmax by whichever operation is faster are exp and softmax."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from draftloop.models.cpu.exponential import exp, softmax


@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0])
def test_exp_is_exp(scale: float) -> None:
    values = scale * np.linspace(-4, 4, 101, dtype=np.float32)
    np.testing.assert_allclose(np.array(exp(mx.array(values))), np.exp(values.astype(np.float64)), rtol=2e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0, 1e4])
def test_softmax_is_softmax(scale: float) -> None:
    logits = scale * np.random.default_rng(0).normal(size=(5, 300)).astype(np.float32)
    exact = np.exp((logits - logits.max(axis=-1, keepdims=True)).astype(np.float64))
    exact /= exact.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.array(softmax(mx.array(logits))), exact, rtol=2e-5, atol=1e-7)


def test_ids_without_a_logit_have_no_mass() -> None:
    found = np.array(softmax(mx.array([[-np.inf, 0.0, -np.inf, 0.0]])))
    np.testing.assert_array_equal(found, [[0, 0.5, 0, 0.5]])
