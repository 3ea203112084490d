"""Layers that cannot carry an adapter are found by trying, and the model is left as it was."""

from __future__ import annotations

import mlx.core as mx
import pytest
import zoo
from mlx import nn
from tiny import tiny_llama

from draftloop.config import Lora
from draftloop.errors import AdapterError
from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig
from draftloop.models.unfit_layers import find_unfit, learns_from_earlier_tokens
from scripts import model_checks, model_zoo


def test_where_all_can_none_is_left_out() -> None:
    assert find_unfit(tiny_llama()) == {}


def test_a_weight_that_the_model_reads_itself_carries_none_and_all_others_do() -> None:
    model = model_zoo.build("gemma3n")
    unfit = find_unfit(model)
    assert set(unfit) == {"altup.correction_coefs", "altup.prediction_coefs"}
    shape = lora.shape_for(model, Lora(rank=2, matrices="layers"), unfit)
    assert shape.keys is not None
    assert "self_attn.q_proj" in shape.keys
    assert not any("coefs" in key for key in shape.keys)
    lora.attach_fresh(model, shape, seed=0)
    mx.eval(model(mx.array([[1, 2, 3]])))


def test_a_layer_whose_adapter_mlx_lm_would_not_load_carries_none() -> None:
    unfit = find_unfit(model_zoo.build("afm7"))
    assert set(unfit) == {"self_attn.qkv_proj"}
    assert "mlx-lm does not load" in unfit["self_attn.qkv_proj"]


@pytest.mark.parametrize("name", ["llama", "qwen3_5", "gpt_oss", "gemma3n", "falcon_h1", "deepseek_v41", "afm7"])
def test_mlx_lm_loads_what_is_exported(name: str) -> None:
    assert model_checks.exported_adapter(name) is None
    assert model_checks.exported_draft(name) is None


def test_a_fused_draft_that_mlx_lm_changes_would_be_noticed() -> None:
    assert "fused and loaded by mlx-lm" in str(model_checks.exported_draft("baichuan_m1"))


@pytest.mark.parametrize("name", ["llama", "qwen3_5", "gpt_oss", "gemma3n", "falcon_h1"])
def test_gradients_are_those_of_finite_differences_and_a_step_moves_the_adapter_alone(name: str) -> None:
    assert model_checks.gradient(model_zoo.build(name)) is None


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_5", "mamba", "gemma3n"])
def test_a_token_is_learned_from_those_before_it(name: str) -> None:
    assert learns_from_earlier_tokens(model_zoo.build(name))


def test_the_same_of_a_quantized_draft() -> None:
    model = tiny_llama()
    nn.quantize(model, group_size=32, bits=4)
    assert learns_from_earlier_tokens(model)


def test_rounded_keys_and_values_let_no_gradient_through() -> None:
    model = model_zoo.build("afm7")
    embeddings = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    assert not learns_from_earlier_tokens(model)
    assert embeddings
    assert all(type(dict(model.named_modules())[name]) is own for name, own in embeddings.items())


def test_an_adapter_that_the_model_carries_stays_on_it() -> None:
    model = tiny_llama()
    lora.attach_fresh(model, AdapterConfig(3, 2.0), seed=5)
    before = lora.adapter_parameters(model)
    find_unfit(model)
    after = lora.adapter_parameters(model)
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]) for name in before)
    assert not model.training


def test_a_model_through_which_no_gradient_comes_is_refused() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_llama()

        @property
        def layers(self) -> list[nn.Module]:
            return self.inner.layers

        def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
            raise ValueError("[CustomKernel] has no vjp")

    with pytest.raises(AdapterError, match="no layer of this draft can be trained"):
        find_unfit(Dead())


def test_the_zoo_of_pairs_is_one_of_models_that_can_be_built() -> None:
    assert set(zoo.FEW) | set(zoo.STATES) <= set(model_zoo.names())
