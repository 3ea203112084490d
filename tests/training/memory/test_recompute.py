"""Activations that are computed again: the same numbers in less memory, and no other model is touched."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from tiny import tiny_llama

from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig
from draftloop.models.unfit_layers import find_unfit
from draftloop.runtime.rng import get_state
from draftloop.training.memory import recompute
from draftloop.training.memory.recompute import is_recomputed, set_recompute
from scripts import model_checks, model_zoo


def adapted(dropout: float = 0.0, layers: int = 8) -> nn.Module:
    draft = tiny_llama(width=64, layers=layers, seed=2, sharpness=1.0)
    lora.attach_fresh(draft, AdapterConfig(rank=4, scale=2.0, dropout=0.0), seed=0)
    lora.set_dropout(draft, dropout)
    leaves = lora.adapter_parameters(draft)
    noise = {n: 0.1 * mx.random.normal(a.shape, key=mx.random.key(i)) for i, (n, a) in enumerate(leaves.items())}
    lora.load_parameters(draft, noise)
    mx.eval(draft.parameters())
    return draft.train()


INPUTS = mx.random.randint(0, 64, (4, 128), key=mx.random.key(5))


def differentiated(draft: nn.Module) -> tuple[float, dict[str, mx.array], int]:
    """Loss, gradients and the bytes that they took."""
    mx.random.seed(3)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    loss, gradients = nn.value_and_grad(draft, lambda inputs: draft(inputs).square().sum())(INPUTS)
    mx.eval(loss, gradients)
    return loss.item(), dict(tree_flatten(gradients)), mx.get_peak_memory() - before


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_loss_gradients_and_random_state_are_the_same(dropout):
    draft = adapted(dropout)
    loss, expected, _ = differentiated(draft)
    state = get_state().tolist()
    set_recompute(draft, True)
    again, found, _ = differentiated(draft)
    assert again == pytest.approx(loss, rel=1e-5)
    assert found.keys() == expected.keys()
    assert any(mx.abs(value).max().item() > 0 for value in expected.values())
    for name, value in expected.items():
        assert mx.abs(found[name] - value).max().item() <= 1e-5 * mx.abs(value).max().item(), name
    assert get_state().tolist() == state


def test_dropout_drawn_anew_in_the_backward_pass_would_be_noticed(monkeypatch):
    """As it is where a layer is merely wrapped in mx.checkpoint."""
    from contextlib import nullcontext

    from draftloop.training.memory import recompute

    draft = adapted(dropout=0.5)
    _, expected, _ = differentiated(draft)
    monkeypatch.setattr(recompute, "_drawing_from", lambda _key: nullcontext())
    monkeypatch.setattr(recompute, "_exact_layers", lambda model: [True] * len(model.layers))  # which would notice it
    set_recompute(draft, True)
    _, found, _ = differentiated(draft)
    assert max(mx.abs(found[n] - v).max().item() / mx.abs(v).max().item() for n, v in expected.items()) > 0.01


@pytest.mark.usefixtures("on_the_cpu")
def test_it_takes_far_less_memory_on_a_deep_model():
    draft = adapted()
    differentiated(draft)
    _, _, kept = differentiated(draft)
    set_recompute(draft, True)
    _, _, recomputed = differentiated(draft)
    assert recomputed < 0.6 * kept


def test_a_target_of_the_same_class_and_the_class_are_left_alone():
    target, draft = tiny_llama(width=64, layers=8, seed=1), adapted()
    kind = type(target.layers[0])
    call, before = kind.__call__, target(INPUTS)
    set_recompute(draft, True)
    assert all(map(is_recomputed, draft.layers))
    assert not any(map(is_recomputed, target.layers))
    assert all(type(layer) is kind for layer in target.layers)
    assert kind.__call__ is call
    assert mx.array_equal(target(INPUTS), before)


def test_names_stay_and_it_can_be_turned_off_again():
    draft = adapted()
    names = [name for name, _ in tree_flatten(draft.parameters())]
    kinds, shape, before = [type(layer) for layer in draft.layers], lora.carried_shape(draft), draft(INPUTS)
    set_recompute(draft, True)
    set_recompute(draft, True)  # twice is once
    assert [name for name, _ in tree_flatten(draft.parameters())] == names
    assert lora.carried_shape(draft) == shape
    assert mx.array_equal(draft(INPUTS), before)
    set_recompute(draft, False)
    assert [type(layer) for layer in draft.layers] == kinds
    assert not any(map(is_recomputed, draft.layers))


@pytest.mark.usefixtures("on_the_cpu")
def test_nothing_that_was_computed_is_kept_alive():
    draft = adapted()
    set_recompute(draft, True)
    differentiated(draft)
    mx.synchronize()  # what is enqueued holds its arrays until it has run
    mx.clear_cache()
    before = mx.get_active_memory()
    differentiated(draft)
    mx.synchronize()
    assert mx.get_active_memory() - before < 4 * 64 * INPUTS.size  # what one layer puts out


@pytest.mark.parametrize("name", ["gemma4_text", "gemma3n", "hunyuan", "qwen3_5", "gpt_oss"])
def test_layers_whose_keys_others_share_are_not_recomputed_and_gradients_stay_right(name):
    model = model_zoo.build(name)
    set_recompute(model, True)  # before there is an adapter: what is found then is not what holds with one
    set_recompute(model, False)
    assert model_checks.gradient(model, recompute=True) is None
    inside, outside = lora.adaptable_keys(model)
    keys = sorted((inside | outside) - set(find_unfit(model)))
    lora.attach_fresh(model, AdapterConfig(2, 1.0, keys=tuple(keys)), seed=0)
    leaves = lora.adapter_parameters(model)
    lora.load_parameters(model, {name: mx.ones_like(values) for name, values in leaves.items()})
    set_recompute(model, True)
    recomputed = [is_recomputed(layer) for layer in model.layers]
    assert any(recomputed)
    assert all(recomputed) == (name in ("qwen3_5", "gpt_oss"))


def test_recomputing_every_layer_would_be_noticed(monkeypatch):
    monkeypatch.setattr(recompute, "_exact_layers", lambda model: [True] * len(model.layers))
    assert "finite differences" in model_checks.gradient(model_zoo.build("gemma4_text"), recompute=True)
