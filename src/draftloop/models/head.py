"""Where a model's head is, found by trying, whatever a model calls it and wherever it lies. Knows no loss.

A head is a linear layer with an output for every token, or an embedding that is used as one. What it is given in the
model's own call are the hidden states. What a model does with logits behind its head, where it caps or scales them, is
its own call too: over one token, with the head giving those logits. MLX computes what is needed alone, and of that call
this is what lies behind the head.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import mlx.core as mx
from mlx import nn
from mlx_lm.tuner.lora import LoRALinear

from ..caches import read_whole
from ..runtime.rng import unchanged

_LARGE = 100.0  # times the probe's hidden states
_OUTPUT = "_draftloop_output"
_PROBE = ((3, 1, 2, 0, 1, 3), (1, 1, 0, 2, 3, 0))


@dataclass(frozen=True)
class Head:
    """The module at the end of a model, by its path: an adapter may replace the object that lies there.

    Attributes:
        model: whose.
        path: where it lies.
        is_last: whether its output is the logits; elsewhere the model changes it, each position for itself.
    """

    model: nn.Module
    path: tuple[str, ...]
    is_last: bool

    def module(self) -> nn.Module:
        """As it is now."""
        found = self.model
        for key in self.path:
            found = found[int(key)] if isinstance(found, list) else found[key]
        return found

    def hidden(self, inputs: mx.array) -> mx.array:
        """(B, L) to (B, L, D): what it is given."""
        given: list[mx.array] = []

        def note(rows: mx.array) -> mx.array:
            given.append(rows)
            return rows

        with _giving(self.module(), note):
            read_whole(self.model, inputs)
        return given[0]

    def __call__(self, rows: mx.array) -> mx.array:
        """(..., D) to (..., V)."""
        module = self.module()
        logits: mx.array = module.as_linear(rows) if hasattr(module, "as_linear") else module(rows)
        return logits if self.is_last else self._behind(module, logits)

    def _behind(self, module: nn.Module, logits: mx.array) -> mx.array:
        """What the model makes of (..., V) behind the module. The random state is left alone."""
        with unchanged(), _giving(module, lambda _rows: logits.reshape(1, -1, logits.shape[-1])):
            return read_whole(self.model, mx.array([[0]])).reshape(logits.shape)

    def is_exact(self, logits: mx.array) -> bool:
        """Whether it gives the model's `logits` for the probe."""
        try:
            short = self(self.hidden(mx.array(_PROBE)))  # in the shape of the call, which 16 bits round alike
            return short.shape == logits.shape and bool(mx.allclose(short, logits, rtol=1e-5, atol=1e-6).item())
        except (AttributeError, IndexError, TypeError, ValueError):
            return False

    def hides_a_cap(self) -> bool:
        """Whether it passes for the last thing only because the probe's logits are small: a cap changes larger ones."""
        if not self.is_last:
            return False
        rows = _LARGE * self.hidden(mx.array(_PROBE))
        logits = self(rows)
        try:
            return not bool(mx.allclose(self._behind(self.module(), logits), logits, rtol=1e-3).item())
        except (AttributeError, IndexError, TypeError, ValueError):
            return False


def find_head(model: nn.Module) -> Head | None:
    """The head of `model`, bare or with an adapter; None where no module gives its logits."""
    logits = read_whole(model, mx.array(_PROBE))
    paths = [name for name, module in model.named_modules() if _outputs(module) == logits.shape[-1]]
    by_depth = sorted(paths, key=lambda name: (name.count("."), name))  # a layer before the one that an adapter wraps
    heads = (Head(model, tuple(name.split(".")), is_last) for is_last in (True, False) for name in by_depth)
    return next((head for head in heads if head.is_exact(logits) and not head.hides_a_cap()), None)


def _outputs(module: nn.Module) -> int:
    """How many tokens a module could be the head for; 0 where it could be none."""
    if isinstance(module, LoRALinear):
        return _outputs(module.linear)
    is_head = hasattr(module, "as_linear") or isinstance(module, nn.Linear | nn.QuantizedLinear)
    weight = getattr(module, "weight", getattr(getattr(module, "embedding", None), "weight", None))
    return int(weight.shape[0]) if is_head and weight is not None else 0


@contextmanager
def _giving(module: nn.Module, output: Callable[[mx.array], mx.array]) -> Iterator[None]:
    """Within the block, the module gives as a head what `output` makes of its input."""
    kind = type(module)
    try:
        vars(module)[_OUTPUT] = output
        module.__class__ = _giving_kind(cast(Hashable, kind))
        yield
    finally:
        module.__class__ = kind
        vars(module).pop(_OUTPUT, None)


@cache
def _giving_kind(kind: Any) -> type[nn.Module]:
    """One class for each: a class of its own for each call would lie in a cycle, and keep what `output` holds."""
    name = "as_linear" if hasattr(kind, "as_linear") else "__call__"
    members = {
        name: lambda self, rows: vars(self)[_OUTPUT](rows),
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
    }
    return type(kind.__name__, (kind,), members)
