"""Positions read from a table are the positions that mlx works out."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from tiny import tiny_llama

from draftloop.models.cpu.rope import FIRST_LENGTH, WHOLE_LENGTH, TabulatedRoPE, tabulate_positions

pytestmark = pytest.mark.usefixtures("module_on_the_cpu")


class Two(nn.Module):
    """A model of two layers that only rotate."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = list(layers)


def tabulated(plain: nn.RoPE, longest: int | None = None) -> TabulatedRoPE:
    model = Two(plain)
    tabulate_positions(model, longest)
    (found,) = model.layers
    assert isinstance(found, TabulatedRoPE)
    return found


@pytest.mark.parametrize("offset", [0, 1, 37, FIRST_LENGTH - 2, 5 * FIRST_LENGTH])
@pytest.mark.parametrize("base", [10_000.0, 1e6])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_every_position_is_rotated_as_mlx_does(offset: int, base: float, scale: float) -> None:
    plain = nn.RoPE(16, base=base, scale=scale)
    x = mx.random.normal((2, 3, 5, 16), key=mx.random.key(offset))
    angle = 3e-7 * offset  # what the last digit of a frequency makes of the angle
    np.testing.assert_allclose(
        np.array(tabulated(plain)(x, offset=offset)), np.array(plain(x, offset=offset)), atol=2e-6 + angle
    )


def test_gradients_are_those_of_mlx() -> None:
    plain = nn.RoPE(16)
    x, weights = (mx.random.normal((1, 2, 7, 16), key=mx.random.key(i)) for i in (0, 1))
    ours, theirs = (
        mx.grad(lambda y, r=rope: (r(y, offset=3) * weights).sum())(x) for rope in (tabulated(plain), plain)
    )
    np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=2e-6)


@pytest.mark.parametrize("longest", [None, 64, WHOLE_LENGTH, WHOLE_LENGTH + 1])
def test_rows_with_offsets_of_their_own_are_rotated_by_them(longest: int | None) -> None:
    plain, x = nn.RoPE(16), mx.random.normal((3, 3, 5, 16), key=mx.random.key(0))
    ours, offsets = tabulated(plain, longest), mx.array([0, 9, 59])
    np.testing.assert_allclose(np.array(ours(x, offset=offsets)), np.array(plain(x, offset=offsets)), atol=2e-5)


def test_padding_and_what_lies_beyond_the_longest_text_is_finite() -> None:
    found = tabulated(nn.RoPE(16), 64)(mx.ones((2, 1, 5, 16)), offset=mx.array([-3, 62]))
    plain = nn.RoPE(16)(mx.ones((2, 1, 5, 16)), offset=mx.array([-3, 62]))
    assert np.isfinite(np.array(found)).all()
    np.testing.assert_allclose(np.array(found)[0, :, 3:], np.array(plain)[0, :, 3:], atol=2e-5)
    np.testing.assert_allclose(np.array(found)[1, :, :2], np.array(plain)[1, :, :2], atol=2e-5)


def test_a_table_that_is_whole_still_grows_for_a_longer_text() -> None:
    plain, x = nn.RoPE(16), mx.random.normal((1, 1, 5, 16), key=mx.random.key(0))
    np.testing.assert_allclose(np.array(tabulated(plain, 64)(x, offset=99)), np.array(plain(x, offset=99)), atol=4e-5)


def test_other_types_and_partly_rotated_heads_are_left_to_mlx() -> None:
    plain, x = nn.RoPE(16), mx.random.normal((2, 3, 5, 16), key=mx.random.key(0))
    half = tabulated(plain)(x.astype(mx.float16), offset=3)
    assert half.dtype == mx.float16
    partly = nn.RoPE(8)
    np.testing.assert_array_equal(np.array(tabulated(partly)(x, offset=3)), np.array(partly(x, offset=3)))


def test_layers_of_like_frequencies_share_a_table_and_others_stay_as_they_are() -> None:
    model = Two(nn.RoPE(16), nn.RoPE(16), nn.RoPE(8), nn.RoPE(16, traditional=True))
    tabulate_positions(model, None)
    first, second, other, traditional = model.layers
    assert first._table is second._table
    assert first._table is not other._table
    assert type(traditional) is nn.RoPE


def test_a_model_says_what_it_said_and_has_no_parameter_more() -> None:
    model, ids = tiny_llama(tied=True), mx.array([[3, 1, 4, 1, 5]])
    before, logits = model.parameters(), np.array(model(ids))
    tabulate_positions(model, None)
    assert model.parameters() == before
    assert all(isinstance(layer.self_attn.rope, TabulatedRoPE) for layer in model.layers)
    np.testing.assert_allclose(np.array(model(ids)), logits, atol=1e-5)
