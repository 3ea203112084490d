"""What is found out about a model by trying it is kept for as long as the model lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from mlx import nn

T = TypeVar("T")


def once_per_model(find: Callable[[nn.Module], T]) -> Callable[[nn.Module], T]:
    """The function that asks `find` once for each model; models cannot be keys, so they are told apart by identity.

    What `find` gives must not hold the model, or it would never be freed.
    """
    known: dict[int, tuple[weakref.ref[nn.Module], T]] = {}

    @wraps(find)
    def found(model: nn.Module) -> T:
        key = id(model)
        kept = known.get(key)
        if kept is None or kept[0]() is not model:  # another one may have had this identity
            kept = weakref.ref(model, lambda _: known.pop(key, None)), find(model)
            known[key] = kept
        return kept[1]

    return found
