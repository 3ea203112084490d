"""A gated layer with another sigmoid says what it said, and what is no such layer stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx import nn
from mlx_lm.models.activations import swiglu as stock_swiglu
from mlx_lm.models.llama import MLP
from tiny import tiny_llama

from draftloop.models.cpu.gated_layers import GatedMLP, quicken_gates, swiglu

pytestmark = pytest.mark.usefixtures("module_on_the_cpu")

finite = st.floats(-1e4, 1e4, width=32)


class Model(nn.Module):
    """A model of the given layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = list(layers)


class Parts(nn.Module):
    """The parts of a gated layer, put together by a subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 16, bias=False), nn.Linear(8, 16, bias=False)
        self.down_proj = nn.Linear(16, 8, bias=False)


class Doubled(Parts):
    """Another formula of the same parts."""

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(2 * stock_swiglu(self.gate_proj(x), self.up_proj(x)))


class Scaled(Parts):
    """One that needs what is none of the parts."""

    scale = 1.0

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(stock_swiglu(self.gate_proj(x), self.up_proj(x)) * self.scale)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=20))
def test_values_and_gradients_are_those_of_silu(pairs: list[tuple[float, float]]) -> None:
    gate, up = (mx.array(values) for values in zip(*pairs, strict=True))

    def stock(g: mx.array, u: mx.array) -> mx.array:
        return g * mx.sigmoid(g) * u

    def slopes(f: Callable[..., mx.array]) -> tuple[mx.array, ...]:
        return mx.grad(lambda g, u: f(g, u).sum(), argnums=(0, 1))(gate, up)

    for ours, theirs in (([swiglu(gate, up)], [stock(gate, up)]), (slopes(swiglu), slopes(stock))):
        for one, other in zip(ours, theirs, strict=True):
            scale = 1 + np.abs(np.array(gate)) * (1 + np.abs(np.array(up)))
            assert np.all(np.abs(np.array(one) - np.array(other)) <= 1e-5 * (scale + np.abs(np.array(other))))


@pytest.mark.parametrize("gate", [-3e38, -1e4, -100.0, -88.0, 0.0, 88.0, 100.0, 1e4])
def test_nothing_overflows_at_extreme_gates(gate: float) -> None:
    g, up = mx.array([gate]), mx.array([1.0])
    value = swiglu(g, up).item()
    slope = mx.grad(lambda x: swiglu(x, up).sum())(g).item()
    assert value == pytest.approx(max(gate, 0.0), abs=1e-30)
    assert slope == pytest.approx(0.5 if gate == 0 else float(gate > 0), abs=1e-30)


def test_a_model_says_what_it_said_with_the_same_parameters() -> None:
    model, ids = tiny_llama(tied=True), mx.array([[3, 1, 4, 1, 5]])
    before, logits = model.parameters(), np.array(model(ids))
    quicken_gates(model)
    assert all(isinstance(layer.mlp, GatedMLP) for layer in model.layers)
    assert model.parameters() == before
    np.testing.assert_allclose(np.array(model(ids)), logits, atol=1e-5)


def test_layers_stay_in_the_mode_they_were_in() -> None:
    model = Model(mlp_of(tiny_llama(tied=True)))
    model.eval()
    quicken_gates(model)
    assert not model.layers[0].training


@pytest.mark.parametrize("kind", [Parts, Doubled, Scaled])
def test_what_is_no_such_layer_stays_as_it_is(kind: type[Parts], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "swiglu", stock_swiglu)  # as a module of mlx-lm has it
    layer = kind()
    model = Model(layer)
    quicken_gates(model)
    assert model.layers[0] is layer


def test_a_layer_with_a_part_more_stays_as_it_is() -> None:
    layer = mlp_of(tiny_llama(tied=True))
    layer.norm = nn.RMSNorm(32)
    model = Model(layer)
    quicken_gates(model)
    assert model.layers[0] is layer


def mlp_of(model: nn.Module) -> MLP:
    return model.layers[0].mlp
