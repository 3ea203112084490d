"""What a model's recurrent layers were given in a pass, so that they can be run again on the first part of it.

Taking back part of a pass means to bring the states back to its beginning and to read its first tokens again. Most of
a model need not be run for that: a recurrent layer's state follows from the inputs of that layer alone, and these are
known from the pass. MLX is lazy, so of a layer that runs again only what its state needs is computed.

Which modules those are is found by a pass, not by names: the innermost calls that are given a recurrent state. So is
which axis of each argument runs along the tokens: the one whose length changes with the pass's. Only within a pass have
these modules a class of their own, which notes the call and computes the same: their own class is left alone, and so is
every other model made of it.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from .leaves import is_cache, is_state, leaves_of, rewindable

_LENGTHS = (5, 7)  # tokens of the two passes that show which axis runs along them
_RECORDER = "_draftloop_recorder"

Key = int | str  # of an argument: its position or its name


class CannotRecord(Exception):
    """The recurrent layers' inputs cannot be told apart; its message says why."""


@dataclass(frozen=True)
class Call:
    """One call of a recurrent layer.

    Attributes:
        module: whose.
        arguments: by position or name; arrays as they were at that moment.
        leaves: of all caches among them.
    """

    module: nn.Module
    arguments: dict[Key, Any]
    leaves: list[Any]

    def again(self, axes: dict[Key, int | None], kept: int) -> Call:
        """The same call with the first `kept` tokens alone, not yet made."""
        return Call(
            self.module, {key: _cut(value, axes.get(key), kept) for key, value in self.arguments.items()}, self.leaves
        )

    def make(self) -> None:
        """Make it, for what it does to its caches."""
        positional = [value for key, value in sorted(self._of(int))]
        self.module(*positional, **dict(self._of(str)))

    def _of(self, kind: type) -> Iterator[tuple[Any, Any]]:
        return ((key, value) for key, value in self.arguments.items() if isinstance(key, kind))


class Recorder:
    """Notes the calls of a model's recurrent layers.

    Args:
        model: one of whose cache's leaves is a state.

    Raises:
        CannotRecord: which axis of an argument runs along the tokens cannot be told.
    """

    def __init__(self, model: nn.Module) -> None:
        first, second = (_calls_of_a_pass(model, length) for length in _LENGTHS)
        if [id(call.module) for call in first] != [id(call.module) for call in second]:
            raise CannotRecord("its recurrent layers are called in another order from pass to pass")
        self._axes = [_axes(one, two) for one, two in zip(first, second, strict=True)]
        modules = {id(call.module): call.module for call in first}
        # What is known of a model keeps none alive.
        self._modules = [weakref.ref(module) for module in modules.values()]

    def recording(self, calls: list[Call]) -> AbstractContextManager[None]:
        """Within the block, calls are appended to the list."""
        return _noting([module for known in self._modules if (module := known()) is not None], calls)

    def cut(self, calls: Sequence[Call], kept: int) -> list[Call]:
        """The calls of one pass, with its first `kept` tokens alone."""
        return [call.again(axes, kept) for call, axes in zip(calls, self._axes, strict=True)]


def _calls_of_a_pass(model: nn.Module, length: int) -> list[Call]:
    """The innermost calls that are given a state, in a pass over so many tokens of a fresh cache."""
    takers = [
        module for module in model.modules() if module is not model and _takes_a_cache(cast(Hashable, type(module)))
    ]
    calls: list[Call] = []
    with _noting(takers, calls):
        mx.eval(model(mx.zeros((1, length), mx.int32), cache=rewindable(make_prompt_cache(model), length)))
    return calls


def _axes(one: Call, two: Call) -> dict[Key, int | None]:
    """Which axis of each argument runs along the tokens; None where none does."""
    if one.arguments.keys() != two.arguments.keys():
        raise CannotRecord(f"{type(one.module).__name__} has other arguments from pass to pass")
    return {key: _axis(one, two, key) for key in one.arguments}


def _axis(one: Call, two: Call, key: Key) -> int | None:
    first, second = one.arguments[key], two.arguments[key]
    if not isinstance(first, mx.array) or not isinstance(second, mx.array):
        return None
    if first.dtype == mx.bool_:
        return None
    changing = [
        axis for axis, lengths in enumerate(zip(first.shape, second.shape, strict=False)) if lengths == _LENGTHS
    ]
    if len(changing) > 1 or (not changing and first.shape != second.shape):
        raise CannotRecord(f"argument {key!r} of {type(one.module).__name__} changes along several axes with the pass")
    return changing[0] if changing else None


def _cut(value: Any, axis: int | None, kept: int) -> Any:
    if isinstance(value, mx.array) and value.dtype == mx.bool_:
        return None  # a mask: it hides entries from outputs, and these are never computed
    return value if axis is None else value[(slice(None),) * axis + (slice(kept),)]


@cache
def _takes_a_cache(kind: Any) -> bool:
    return "cache" in inspect.signature(kind.__call__).parameters


@contextmanager
def _noting(modules: Sequence[nn.Module], calls: list[Call]) -> Iterator[None]:
    """Within the block, what the modules are called with is appended to `calls`, if a state is among it."""
    before = [type(module) for module in modules]
    try:
        for module, kind in zip(modules, before, strict=True):
            vars(module)[_RECORDER] = calls
            module.__class__ = _noting_kind(cast(Hashable, kind))
        yield
    finally:
        for module, kind in zip(modules, before, strict=True):
            module.__class__ = kind
            vars(module).pop(_RECORDER, None)


@cache
def _noting_kind(kind: Any) -> type[nn.Module]:
    """A class whose objects do what those of `kind` do, and note it."""
    original: Callable[..., Any] = kind.__call__

    def call(self: nn.Module, *positional: Any, **named: Any) -> Any:
        given: dict[Key, Any] = dict(enumerate(positional))
        given.update(named)
        leaves = leaves_of(value for value in given.values() if is_cache(value))
        if not any(map(is_state, leaves)):
            return original(self, *positional, **named)
        calls: list[Call] = vars(self)[_RECORDER]
        before = len(calls)
        arguments = {key: value[...] if isinstance(value, mx.array) else value for key, value in given.items()}
        found = original(self, *positional, **named)
        if len(calls) == before:  # nothing within it was given the state
            calls.append(Call(self, arguments, leaves))
        return found

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__})
