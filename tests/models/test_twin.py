"""A twin computes the same with the same arrays, and what is put on it stays on it."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny import tiny_llama

from draftloop.caches import read_whole
from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig
from draftloop.models.twin import twin_of
from scripts import model_zoo

TOKENS = mx.arange(12)[None]


@pytest.mark.parametrize("name", ["llama", "qwen3_5", "gemma3n", "deepseek_v3", "mamba2", "gpt2"])
def test_it_computes_the_same_and_copies_no_weight(name: str) -> None:
    model = model_zoo.build(name)
    twin = twin_of(model)
    arrays, others = (dict(tree_flatten(one.parameters())) for one in (model, twin))
    assert arrays.keys() == others.keys()
    assert all(arrays[key] is others[key] for key in arrays if "weight" in key)
    assert all(one is not other for one, other in zip(model.modules(), twin.modules(), strict=True))
    assert mx.array_equal(read_whole(model, TOKENS), read_whole(twin, TOKENS))


def test_an_adapter_on_it_is_not_on_the_other() -> None:
    model = tiny_llama()
    before = read_whole(model, TOKENS)
    twin = twin_of(model)
    lora.attach_fresh(twin, AdapterConfig(2, 1.0), seed=0)
    lora.load_parameters(twin, {name: mx.ones_like(leaf) for name, leaf in lora.adapter_parameters(twin).items()})
    with lora.merged(twin):
        assert not mx.allclose(read_whole(twin, TOKENS), before)
        assert mx.array_equal(read_whole(model, TOKENS), before)
    assert not lora.is_attached(model)
