"""The leaves of a prompt cache: the objects that hold arrays. Told apart by what they can do, not by their names.

A leaf either trims its last tokens off, or it holds a recurrent state, from which no token can be taken off. Of a state
a snapshot is taken before a pass, and put back. MLX's arrays are values, so a snapshot copies nothing: it only keeps
alive what the pass reads anyway.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import CacheList, ChunkedKVCache, RotatingKVCache

from .windows import ChunkCache, WindowCache

Snapshot = dict[str, Any]


def rewindable(caches: Sequence[Any], slack: int) -> list[Any]:
    """A cache of mlx-lm with every window in it replaced by one that takes up to `slack` tokens back.

    Windows hold nothing yet, or their entries in the order of their tokens, as after a prompt.
    """

    def made(cache: Any, of: Callable[[Any], Any]) -> Any:
        if type(cache) is CacheList:
            return CacheList(*map(of, cache.caches))
        if type(cache) is RotatingKVCache and cache.keep == 0:
            return WindowCache.of(cache, slack)
        if type(cache) is ChunkedKVCache:
            return ChunkCache(cache.chunk_size, slack)
        return cache

    return _each_once(caches, made)


def stock(caches: Sequence[Any]) -> list[Any]:
    """The same, with mlx-lm's own windows, which it can make a batch of; chunks stay."""

    def made(cache: Any, of: Callable[[Any], Any]) -> Any:
        if type(cache) is CacheList:
            return CacheList(*map(of, cache.caches))
        return cache.stock() if type(cache) is WindowCache else cache

    return _each_once(caches, made)


def can_trim(leaf: Any, count: int) -> bool:
    """Whether the last `count` tokens can be taken off a leaf as it is."""
    if hasattr(leaf, "holds"):
        return bool(leaf.holds(count))
    return bool(leaf.is_trimmable())


def leaves_of(caches: Iterable[Any]) -> list[Any]:
    """Every leaf once, though layers may share one or have none."""
    found: dict[int, Any] = {}

    def visit(cache: Any) -> None:
        if isinstance(cache, CacheList):
            for inner in cache.caches:
                visit(inner)
        elif cache is not None:
            found.setdefault(id(cache), cache)

    for cache in caches:
        visit(cache)
    return list(found.values())


def is_cache(value: Any) -> bool:
    """Whether a value that a module was given is a cache."""
    return hasattr(value, "is_trimmable")


def is_state(leaf: Any) -> bool:
    """Whether a leaf of a fresh cache, windows replaced, is one that cannot trim."""
    return not leaf.is_trimmable()


def snapshot(leaf: Any) -> Snapshot:
    """All that a leaf holds, as it is now."""
    return {name: _copied(value) for name, value in vars(leaf).items()}


def put_back(leaf: Any, kept: Snapshot) -> None:
    """Make a leaf what it was at its snapshot, which may be used again."""
    vars(leaf).clear()
    vars(leaf).update({name: _copied(value) for name, value in kept.items()})


def copied(caches: Sequence[Any]) -> list[Any]:
    """Caches that go on from where these are, and leave these as they are."""

    def made(cache: Any, of: Callable[[Any], Any]) -> Any:
        other = copy.copy(cache)
        if isinstance(cache, CacheList):
            other.caches = tuple(map(of, cache.caches))
        elif cache is not None:
            put_back(other, snapshot(cache))
        return other

    return _each_once(caches, made)


def _each_once(caches: Sequence[Any], made: Callable[[Any, Callable[[Any], Any]], Any]) -> list[Any]:
    """What `made` makes of each; of one that layers share, one that they share. It is given how to go on within one."""
    found: dict[int, Any] = {}

    def of(cache: Any) -> Any:
        if id(cache) not in found:
            found[id(cache)] = made(cache, of)
        return found[id(cache)]

    return [of(cache) for cache in caches]


def _copied(value: Any) -> Any:
    """New containers and new references: `x[i] = v` and `x -= n` change the array that a Python object stands for."""
    if isinstance(value, mx.array):
        return value[...]
    if isinstance(value, list | tuple):
        return type(value)(_copied(one) for one in value)
    if isinstance(value, dict):
        return {name: _copied(one) for name, one in value.items()}
    return value
