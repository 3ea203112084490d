from __future__ import annotations

import gc

import mlx.core as mx
import pytest
import zoo
from mlx import nn
from mlx.utils import tree_flatten
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
    """A model of another build: the logits of a position depend on those of the others."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @property
    def layers(self) -> list[nn.Module]:
        return self.inner.layers

    def __call__(self, inputs: mx.array, cache: object = None) -> mx.array:
        logits = self.inner(inputs, cache=cache)
        return logits - logits.mean(axis=1, keepdims=True)


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


def test_a_model_that_is_more_than_body_and_head_gets_its_plain_call_and_says_so():
    model, said = Opaque(tiny_llama()), []
    chosen = make_forward(model, "target", said.append)(INPUTS, POSITIONS)
    assert mx.allclose(chosen, model(INPUTS).reshape(-1, 64)[POSITIONS])
    assert len(said) == 1
    assert "the target's logits" in said[0]


def test_what_a_model_does_behind_its_head_is_done_at_chosen_positions_alone():
    model, said = Capped(tiny_llama()), []
    forward = make_forward(model, "target", said.append)
    assert said == []
    expected = model(INPUTS).reshape(-1, 64)[POSITIONS]
    rows = forward.hidden(INPUTS, POSITIONS)
    assert rows.shape == (5, 32)
    assert mx.allclose(forward.head(rows), expected, rtol=1e-5, atol=1e-6)
    assert mx.allclose(forward.head(rows[2:3]), expected[2:3], rtol=1e-5, atol=1e-6)


def test_the_gradient_through_it_is_that_of_the_whole_call():
    model = Capped(tiny_llama())
    lora.attach_fresh(model, AdapterConfig(rank=2, scale=2.0, keys=("lm_head", "mlp.up_proj")), seed=0)
    lora.load_parameters(model, {name: mx.ones_like(a) for name, a in lora.adapter_parameters(model).items()})
    forward = make_forward(model, "draft", print)

    def of(logits: mx.array) -> mx.array:
        return mx.square(logits).mean()

    found = nn.value_and_grad(model, lambda _: of(forward(INPUTS, POSITIONS)))(model)
    expected = nn.value_and_grad(model, lambda m: of(m(INPUTS).reshape(-1, 64)[POSITIONS]))(model)
    assert mx.allclose(found[0], expected[0], rtol=1e-5)
    flat = dict(tree_flatten(expected[1]))
    assert {name.rpartition(".")[0] for name in flat} > {"lm_head"}
    for name, gradient in tree_flatten(found[1]):
        assert mx.allclose(gradient, flat[name], rtol=1e-4, atol=1e-6), name


def test_what_is_behind_the_head_is_found_without_the_dropout_of_the_layers_before_it():
    model = Capped(tiny_llama())
    lora.attach_fresh(model, AdapterConfig(rank=2, scale=2.0, dropout=0.5, keys=("mlp.up_proj",)), seed=0)
    forward = make_forward(model.eval(), "draft", print)
    model.train()
    before = mx.array(mx.random.state[0])
    first = forward.head(mx.ones((3, 32)))
    assert mx.array_equal(mx.random.state[0], before)
    assert mx.array_equal(forward.head(mx.ones((3, 32))), first)


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
    "name",
    ["qwen3_5", "nemotron_h", "mamba2", "gpt_oss", "llama4", "kimi_linear", "granite", "cohere2", "gemma2", "gemma3n"],
)
def test_a_head_is_found_wherever_it_lies_and_whatever_it_is_called(name: str) -> None:
    model, said = zoo.model(name), []
    forward = make_forward(model, "draft", said.append)
    assert said == []
    expected = model(INPUTS, cache=make_prompt_cache(model)).reshape(10, -1)[POSITIONS]
    assert mx.allclose(forward(INPUTS, POSITIONS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_llama, lambda: Capped(tiny_llama())])
def test_nothing_is_kept_alive_but_what_it_gives(make):
    forward = make_forward(make(), "draft", print)
    gc.collect()
    gc.disable()
    try:
        held = []
        for _ in range(12):
            mx.eval(forward(INPUTS, POSITIONS))
            held.append(mx.get_active_memory())
    finally:
        gc.enable()
    assert held[-1] == held[3]


def test_a_cap_that_small_logits_hide_is_found():
    model = tiny_llama()
    model.lm_head.weight = 1e-3 * model.lm_head.weight
    capped = Capped(model)
    head = make_forward(capped, "draft", print).head
    rows = 1e5 * mx.random.normal((3, 32), key=mx.random.key(0))
    assert mx.abs(head(rows)).max() <= 5.0
    assert mx.abs(model.lm_head(rows)).max() > 50.0
