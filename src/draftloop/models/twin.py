"""A second model beside a first one, made of the same arrays: another adapter can be put on it, and none is copied."""

from __future__ import annotations

import copy

import mlx.core as mx
from mlx import nn


def twin_of(model: nn.Module) -> nn.Module:
    """A model of the same classes with modules of its own, whose arrays are those of `model`.

    What one replaces, as attaching an adapter does, the other does not see. MLX's arrays are values, so nothing that
    is computed with one changes the other.
    """
    known: dict[int, object] = {}
    for module in model.modules():
        for value in (*module.values(), *vars(module).values()):
            _remember(value, known)
    return copy.deepcopy(model, known)


def _remember(value: object, known: dict[int, object]) -> None:
    """Every array in a value, as what its copy is to be."""
    if isinstance(value, mx.array):
        known[id(value)] = value
    elif isinstance(value, dict) and not isinstance(value, nn.Module):
        for inner in value.values():
            _remember(inner, known)
    elif isinstance(value, list | tuple):
        for inner in value:
            _remember(inner, known)
