"""Gradient checkpointing of one model: its layers' activations are computed again in the backward pass, not kept.

Only the layer objects of that model change, each into an object of a class of its own that computes the same; the class
that they had is left alone, and so is any other model made of it (mlx-lm's own way patches the class, and with it a
target of the same architecture). Names of parameters stay, and it can be turned off again. Knows no training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from ...caches import Snapshot, is_cache, leaves_of, once_per_model, put_back, read_whole, snapshot
from ...runtime.rng import get_state, set_state, unchanged

_RECOMPUTED = "_draftloop_recomputed"


def set_recompute(model: nn.Module, wanted: bool) -> None:
    """Turn it on or off for every layer of `model` of which the gradient stays what it is."""
    layers: Sequence[nn.Module] = getattr(model, "layers", ())  # a model without a list of them has none to change
    exact = _exact_layers(model) if wanted and layers else [True] * len(layers)
    for layer, is_exact in zip(layers, exact, strict=True):
        _set(layer, wanted and is_exact)


def _set(layer: nn.Module, wanted: bool) -> None:
    if wanted and not is_recomputed(layer):
        layer.__class__ = _recomputed(type(layer))
    elif not wanted and is_recomputed(layer):
        layer.__class__ = type(layer).__mro__[1]


def _exact_layers(model: nn.Module) -> list[bool]:
    """Of each layer, whether gradients come through it as well when it is recomputed; tried once for what is trained.

    They do not where a layer hands something on beside its output, as keys and values that later layers share: what a
    function of MLX's reads from elsewhere is a constant to its gradient.
    """
    tried, trained = _tried(model), frozenset(name for name, _ in tree_flatten(model.trainable_parameters()))
    layers: list[nn.Module] = list(model.layers)
    if not trained:
        return [False] * len(layers)  # there is no gradient to keep, and what is trained later was not tried
    if trained not in tried:
        expected = _gradients(model)
        if _are_same(_gradients(model, layers), expected):
            tried[trained] = [True] * len(layers)
        else:
            tried[trained] = [_are_same(_gradients(model, [layer]), expected) for layer in layers]
    return tried[trained]


@once_per_model
def _tried(_model: nn.Module) -> dict[frozenset[str], list[bool]]:
    """What was found for each set of trained parameters."""
    return {}


def _gradients(model: nn.Module, recomputed: Sequence[nn.Module] = ()) -> dict[str, mx.array]:
    """Of a loss of a few tokens; the random state is left alone."""
    before = {id(layer): is_recomputed(layer) for layer in model.layers}
    for layer in model.layers:
        _set(layer, any(layer is one for one in recomputed))
    try:
        with unchanged():
            set_state(mx.random.key(0))
            _, found = nn.value_and_grad(model, _loss)(model)
            mx.eval(found)
    finally:
        for layer in model.layers:
            _set(layer, before[id(layer)])
    return dict(tree_flatten(found))


def _loss(model: nn.Module) -> mx.array:
    return mx.square(read_whole(model, mx.array([[0, 1, 2, 3, 1]])).astype(mx.float32)).mean()


def _are_same(one: dict[str, mx.array], other: dict[str, mx.array]) -> bool:
    return all(bool(mx.allclose(one[name], values, rtol=1e-3, atol=1e-6).item()) for name, values in other.items())


def is_recomputed(layer: nn.Module) -> bool:
    """Whether it is on for a layer."""
    return _RECOMPUTED in vars(type(layer))


def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    """A class whose objects do what those of `kind` do, and keep nothing of it for the backward pass but their input.

    MLX calls the function again for the backward pass. Then it must draw the same dropout: from the key that the first
    call began with, and so that the draws of others do not move. And it must find the caches among its arguments as
    the first call found them.
    """

    def call(self: nn.Module, *given: Any, **named: Any) -> Any:
        first, again = get_state(), False
        caches = leaves_of(value for value in (*given, *named.values()) if is_cache(value))
        before = [snapshot(leaf) for leaf in caches]
        # MLX wants arrays alone. What is none stays where it is; positions are kept by their number.
        arrays = {key: value for key, value in _by_key(given, named) if isinstance(value, mx.array)}

        def inner(parameters: Any, arrays: dict[str, mx.array]) -> Any:
            nonlocal again
            outer, second, again = self.trainable_parameters(), again, True
            after = [snapshot(leaf) for leaf in caches] if second else []
            self.update(parameters)
            if second:
                _put_back(caches, before)
            try:
                with _drawing_from(first) if second else nullcontext():
                    positional = [arrays.get(str(at), value) for at, value in enumerate(given)]
                    return kind.__call__(self, *positional, **{**named, **_named(arrays, named)})
            finally:
                self.update(outer)  # or the layer would keep alive what was computed
                _put_back(caches, after)

        return mx.checkpoint(inner)(self.trainable_parameters(), arrays)

    members = {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__, _RECOMPUTED: True}
    return type(kind.__name__, (kind,), members)


def _by_key(given: Sequence[Any], named: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((str(at), value) for at, value in enumerate(given))
    yield from named.items()


def _named(arrays: Mapping[str, mx.array], named: Mapping[str, Any]) -> dict[str, mx.array]:
    return {name: arrays[name] for name in named if name in arrays}


def _put_back(caches: Sequence[Any], snapshots: Sequence[Snapshot]) -> None:
    for leaf, kept in zip(caches, snapshots, strict=bool(snapshots)):
        put_back(leaf, kept)


@contextmanager
def _drawing_from(key: mx.array) -> Iterator[None]:
    with unchanged():
        set_state(key)
        yield
