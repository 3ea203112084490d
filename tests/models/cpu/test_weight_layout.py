"""Weights lie otherwise in memory, and are the same weights."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny import tiny_llama

from draftloop.models.cpu.weight_layout import lay_out

pytestmark = pytest.mark.usefixtures("module_on_the_cpu")


def strides_in(model: object) -> dict[str, tuple[int, ...]]:
    """As seen from Python, in elements."""
    found = tree_flatten(model.parameters())  # type: ignore[attr-defined]
    return {name: tuple(s // 4 for s in memoryview(leaf).strides) for name, leaf in found if leaf.ndim == 2}


def test_what_widens_lies_by_columns_and_every_value_is_what_it_was() -> None:
    model, ids = tiny_llama(tied=True), mx.array([[3, 1, 4, 1, 5]])
    before = {name: np.array(leaf) for name, leaf in tree_flatten(model.parameters())}
    logits = np.array(model(ids))
    lay_out(model)
    mx.eval(model.parameters())
    strides = strides_in(model)
    assert strides["model.embed_tokens.weight"][0] == 1  # (64, 32): a head of its own, as it is tied
    assert strides["model.layers.0.mlp.up_proj.weight"][0] == 1  # (64, 32)
    assert strides["model.layers.0.mlp.down_proj.weight"][1] == 1  # (32, 64) stays
    for name, leaf in tree_flatten(model.parameters()):
        np.testing.assert_array_equal(np.array(leaf), before[name])
    np.testing.assert_allclose(np.array(model(ids)), logits, atol=1e-4)
