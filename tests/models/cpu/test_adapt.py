"""A model as mlx-lm loads it, and as it decodes on a CPU."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny import tiny_llama

from draftloop.config import Models, Training
from draftloop.models import adapter as lora
from draftloop.models.cpu import adapt as on_cpu
from draftloop.models.cpu.gated_layers import GatedMLP
from draftloop.models.cpu.rope import TabulatedRoPE
from draftloop.models.pair import load_pair

pytestmark = pytest.mark.usefixtures("module_on_the_cpu")


def test_16_bits_become_32_and_positions_are_tabulated() -> None:
    model = tiny_llama(tied=True)
    model.set_dtype(mx.bfloat16)
    on_cpu.adapt_to_cpu(model, None)
    assert {leaf.dtype for _, leaf in tree_flatten(model.parameters())} == {mx.float32}
    assert all(isinstance(layer.self_attn.rope, TabulatedRoPE) for layer in model.layers)


def test_what_is_measured_against_is_float32_and_nothing_else() -> None:
    model, ids = tiny_llama(tied=True), mx.array([[3, 1, 4, 1, 5]])
    logits = np.array(model(ids))
    on_cpu.adapt_to_cpu(model, None, float32_only=True)
    assert not any(isinstance(layer.self_attn.rope, TabulatedRoPE) for layer in model.layers)
    strides = memoryview(model.model.embed_tokens.weight).strides
    assert strides[1] == 4  # row by row
    np.testing.assert_array_equal(np.array(model(ids)), logits)


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_cpu, "is_adapted", lambda: False)
    model = tiny_llama(tied=True)
    model.set_dtype(mx.bfloat16)
    on_cpu.adapt_to_cpu(model, None)
    assert {leaf.dtype for _, leaf in tree_flatten(model.parameters())} == {mx.bfloat16}
    assert not any(isinstance(layer.self_attn.rope, TabulatedRoPE) for layer in model.layers)


def test_a_pair_is_adapted_unless_it_is_what_is_measured_against(small_models: Models) -> None:
    for as_stock in (False, True):
        pair = load_pair(small_models, as_stock=as_stock)
        for model in (pair.target, pair.draft):
            found = {type(module) for module in model.modules()}
            assert (TabulatedRoPE in found, GatedMLP in found) == (not as_stock, not as_stock)
        lora.attach_fresh(pair.draft, lora.shape_for(pair.draft, Training().lora), 0)
        with lora.merged(pair.draft, as_stock=as_stock):
            (by_rows,) = {memoryview(layer.mlp.up_proj.weight).strides[1] == 4 for layer in pair.draft.layers}
            assert by_rows == as_stock
