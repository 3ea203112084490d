"""Whether outputs of a model generated together are those generated alone, found by trying. Knows no sampler.

A batch of mlx-lm pads shorter prompts on the left. Most models are told how far, but some take positions from the
padded length, and some caches cannot be merged at all. Prompts of unequal length are read, their caches merged as
mlx-lm merges them, and three steps of all compared with the steps of each alone.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from ..caches import by_single_steps, comparable, once_per_model, spread_of_logits
from . import prompt_caches

_LENGTHS = (5, 150, 301)  # sparse attention differs only behind its first blocks, of up to 128 tokens
_PROMPTS = tuple(tuple((i * i + i // 3) % 4 for i in range(length)) for length in _LENGTHS)
_STEPS = ((2, 1, 0), (0, 3, 2))  # tokens that follow, of all rows
_MOST_OFF, _MOST_OFF_IN_16_BITS = 3e-3, 0.1  # of the logits' standard deviation


@once_per_model
def batches_exactly(model: nn.Module) -> bool:
    """Whether rows of a batch are what they are alone."""
    if not all(hasattr(layer, "merge") for layer in make_prompt_cache(model)):  # mlx-lm's own test
        return False
    is_float32 = model(mx.array([[0]])).dtype == mx.float32
    rows = prompt_caches.read(model, _PROMPTS, 4, 1024)
    assert rows is not None
    try:
        merged = [type(layers[0]).merge(layers) for layers in zip(*rows, strict=True)]
        together = mx.stack([_logits(model, [[p[-1]] for p in _PROMPTS], merged), *_steps(model, merged)])
    except (AttributeError, TypeError, ValueError):  # a kind of cache that cannot take part in it after all
        return False
    alone = [
        by_single_steps(model, prompt[:-1], (prompt[-1], *(tokens[row] for tokens in _STEPS)))
        for row, prompt in enumerate(_PROMPTS)
    ]
    expected = mx.stack(alone, axis=1)  # (steps, rows, V)
    allowed = _MOST_OFF if is_float32 else _MOST_OFF_IN_16_BITS
    off = mx.abs(comparable(together) - comparable(expected)).max()
    return bool(off.item() <= allowed * spread_of_logits(expected))


def _steps(model: nn.Module, merged: list[Any]) -> list[mx.array]:
    return [_logits(model, [[token] for token in tokens], merged) for tokens in _STEPS]


def _logits(model: nn.Module, tokens: list[list[int]], cache: list[Any]) -> mx.array:
    """(rows, V) float32 after one token of each row."""
    found: mx.array = model(mx.array(tokens), cache=cache)[:, -1].astype(mx.float32)
    return found
