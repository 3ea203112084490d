"""Gradient checkpointing of one model: its layers' activations are computed again in the backward pass, not kept.

Only the layer objects of that model change, each into an object of a class of its own that computes the same; the class
that they had is left alone, and so is any other model made of it (mlx-lm's own way patches the class, and with it a
target of the same architecture). Names of parameters stay, and it can be turned off again. Knows no training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import mlx.core as mx
from mlx import nn

from ...runtime.rng import get_state, set_state, unchanged

_RECOMPUTED = "_draftloop_recomputed"


def set_recompute(model: nn.Module, wanted: bool) -> None:
    """Turn it on or off for every layer of `model`."""
    layers: Sequence[nn.Module] = getattr(model, "layers", ())  # a model without a list of them has none to change
    for layer in layers:
        if wanted and not is_recomputed(layer):
            layer.__class__ = _recomputed(type(layer))
        elif not wanted and is_recomputed(layer):
            layer.__class__ = type(layer).__mro__[1]


def is_recomputed(layer: nn.Module) -> bool:
    """Whether it is on for a layer."""
    return _RECOMPUTED in vars(type(layer))


def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    """A class whose objects do what those of `kind` do, and keep nothing of it for the backward pass but their input.

    MLX calls the function again for the backward pass. Then it must draw the same dropout: from the key that the first
    call began with, and so that the draws of others do not move.
    """

    def call(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        first, again = get_state(), False

        def inner(parameters: Any, *inputs: Any, **named: Any) -> Any:
            nonlocal again
            outer, second, again = self.trainable_parameters(), again, True
            self.update(parameters)
            try:
                with _drawing_from(first) if second else nullcontext():
                    return kind.__call__(self, *inputs, **named)
            finally:
                self.update(outer)  # or the layer would keep alive what was computed

        return mx.checkpoint(inner)(self.trainable_parameters(), *inputs, **named)

    members = {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__, _RECOMPUTED: True}
    return type(kind.__name__, (kind,), members)


@contextmanager
def _drawing_from(key: mx.array) -> Iterator[None]:
    with unchanged():
        set_state(key)
        yield
