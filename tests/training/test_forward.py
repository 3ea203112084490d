from __future__ import annotations

import mlx.core as mx
import pytest
import zoo
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.llama import Model, ModelArgs
from tiny import tiny_llama

from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig
from draftloop.training.forward import make_forward

INPUTS = mx.array([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
POSITIONS = mx.array([1, 3, 5, 9, 0])


def tied() -> nn.Module:
    mx.random.seed(0)
    arguments = ModelArgs(
        model_type="llama",
        hidden_size=32,
        num_hidden_layers=1,
        intermediate_size=64,
        num_attention_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=64,
        tie_word_embeddings=True,
    )
    return Model(arguments)


class Capped(nn.Module):
    """A model that caps its logits after the head, as Gemma 2 does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.model = inner.model
        self.lm_head = inner.lm_head

    @property
    def layers(self) -> list[nn.Module]:
        return self.model.layers

    def __call__(self, inputs: mx.array, cache: object = None) -> mx.array:
        return 5.0 * mx.tanh(self.lm_head(self.model(inputs, cache)) / 5.0)


class Opaque(nn.Module):
    """A model of another build: what comes out has the width of the vocabulary, and no head made it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @property
    def layers(self) -> list[nn.Module]:
        return self.inner.layers

    def __call__(self, inputs: mx.array, cache: object = None) -> mx.array:
        return mx.sort(self.inner(inputs, cache=cache), axis=-1)


def quantized() -> nn.Module:
    model = tiny_llama()
    nn.quantize(model, group_size=32, bits=4)
    return model


@pytest.mark.parametrize("make", [tiny_llama, tied, quantized])
def test_chosen_positions_have_the_logits_of_the_plain_call(make):
    model, said = make(), []
    chosen = make_forward(model, "draft", said.append)(INPUTS, POSITIONS)
    assert mx.allclose(chosen, model(INPUTS).reshape(-1, 64)[POSITIONS], rtol=1e-5, atol=1e-5)
    assert not said


@pytest.mark.parametrize("wrapper", [Capped, Opaque])
def test_a_model_that_is_more_than_body_and_head_gets_its_plain_call_and_says_so(wrapper):
    model, said = wrapper(tiny_llama()), []
    chosen = make_forward(model, "target", said.append)(INPUTS, POSITIONS)
    assert mx.allclose(chosen, model(INPUTS).reshape(-1, 64)[POSITIONS])
    assert len(said) == 1
    assert "the target's logits" in said[0]


def test_the_short_way_would_be_wrong_for_a_capped_model():
    model = Capped(tiny_llama())
    assert not mx.allclose(model.lm_head(model.model(INPUTS)), model(INPUTS))


def test_an_adapter_that_changes_later_is_followed():
    model = tiny_llama()
    lora.attach_fresh(model, AdapterConfig(rank=2, scale=2.0), seed=0)
    forward = make_forward(model, "draft", print)
    before = forward(INPUTS, POSITIONS)
    lora.load_parameters(model, {name: mx.ones_like(a) for name, a in lora.adapter_parameters(model).items()})
    after = forward(INPUTS, POSITIONS)
    assert not mx.allclose(before, after)
    assert mx.allclose(after, model(INPUTS).reshape(-1, 64)[POSITIONS], rtol=1e-5, atol=1e-5)


def test_a_dropout_that_was_given_to_a_sleeping_model_does_not_act_while_it_is_tried_out():
    model, said = tiny_llama().eval(), []
    lora.attach_fresh(model, AdapterConfig(rank=2, scale=2.0), seed=0)
    lora.load_parameters(model, {name: mx.ones_like(a) for name, a in lora.adapter_parameters(model).items()})
    lora.set_dropout(model, 0.5)
    make_forward(model, "draft", said.append)
    assert not said
    assert not mx.array_equal(model.train()(INPUTS), model(INPUTS))  # awake, it acts


@pytest.mark.parametrize(
    "name", ["qwen3_5", "nemotron_h", "mamba2", "gpt_oss", "llama4", "kimi_linear", "granite", "cohere2"]
)
def test_a_head_is_found_wherever_it_lies_and_whatever_it_is_called(name: str) -> None:
    model, said = zoo.model(name), []
    forward = make_forward(model, "draft", said.append)
    assert said == []
    expected = model(INPUTS, cache=make_prompt_cache(model)).reshape(10, -1)[POSITIONS]
    assert mx.allclose(forward(INPUTS, POSITIONS), expected, rtol=1e-4, atol=1e-5)
