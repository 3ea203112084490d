"""Prompt caches: many prompts prefilled together, one cache for each cut out for mlx-lm to merge. Knows no output.

mlx-lm reads the prompts of a batch in one pass that pads all to the longest, rolls what it has read of each to the
right, and copies it three times more, with 256 tokens of room. For recurrent states that is wrong in several families,
which take padding for tokens. Prefilled here, prompts share a pass only where that changes nothing: those of like
length, whose padding on the right is trimmed off, where a cache is the keys and values of every token; elsewhere those
of one length. Each cache has room for what will be generated. Rejected tokens are taken back in `decoder`.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import BatchKVCache, CacheList, KVCache, make_prompt_cache

from ..caches import leaves_of

_FEW = 256  # tokens in a pass, up to which padding costs nothing
_PADDING = 1 / 8  # of what a pass reads may be padding


class PromptCache(KVCache):  # type: ignore[misc]  # mlx-lm is untyped
    """What one layer keeps of a prompt: its keys and values, (1, heads, tokens, width).

    Attributes:
        room: tokens that it has to take in after them, by which it grows.
    """

    room = KVCache.step

    @classmethod
    def merge(cls, caches: Sequence[PromptCache]) -> BatchKVCache:
        """What mlx-lm calls to make one batch of several caches."""
        batch = BatchKVCache.merge(caches)
        batch.step = max(cache.room for cache in caches)
        return batch


def are_plain(model: nn.Module) -> bool:
    """Whether a model's cache is the keys and values of every token alone: these can be trimmed to length."""
    return all(type(layer) is KVCache for layer in make_prompt_cache(model))


@dataclass(frozen=True)
class RowBytes:
    """What the cache of one sequence takes, by leaf: bytes of its first token, of each one more, tokens at most."""

    leaves: tuple[tuple[int, int, float], ...]

    def of(self, length: int) -> int:
        """With so many tokens, one or more."""
        return sum(first + more * int(min(length, most) - 1) for first, more, most in self.leaves)


def row_bytes(model: nn.Module) -> RowBytes:
    """What the cache of one sequence takes, by what caches of one and two tokens hold."""
    found = []
    for one, two in zip(*(leaves_of(_pass(model, [[0] * count], count)) for count in (1, 2)), strict=True):
        held, more = (_bytes(leaf) for leaf in (one, two))
        found.append((held, max(0, more - held), float(getattr(one, "max_size", math.inf))))
    return RowBytes(tuple(found))


def _bytes(leaf: Any) -> int:
    """Of a leaf's arrays, keys and values as far as they are filled."""
    arrays = [values for _, values in tree_flatten([vars(leaf)]) if isinstance(values, mx.array)]
    keys = getattr(leaf, "keys", None)
    room = 1 if keys is None else keys.shape[2] / max(1, leaf.offset)
    return int(sum(values.nbytes for values in arrays) / room)


def read(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    room: int,
    most_tokens: int,
    enough: Callable[[], bool] = lambda: False,
) -> list[list[Any]] | None:
    """Prefill a cache for each prompt, with all of its tokens but the last.

    Args:
        model: one whose caches mlx-lm can merge.
        prompts: tokens of each, at least one.
        room: tokens that a cache has to take in after each.
        most_tokens: in one pass, padding included; at least as many as there are prompts.
        enough: called before every pass; true ends the prefill. It may raise to stop.

    Returns:
        One cache per layer for each prompt; None where it was enough.
    """
    plain, caches = are_plain(model), dict[int, list[Any]]()
    for group in _alike(prompts) if plain else _equal(prompts, most_tokens):
        if enough():
            return None
        layers = _pass(model, [prompts[i][:-1] for i in group], most_tokens)
        for row, i in enumerate(group):
            length = len(prompts[i]) - 1
            caches[i] = [
                _trimmed(layer, row, length, room) if plain else _row(layer, row, len(group)) for layer in layers
            ]
    return [caches[i] for i in range(len(prompts))]


def _alike(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of prompts whose lengths are so much alike that little is padded."""
    group: list[int] = []
    tokens = 0
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        length = len(prompts[i]) - 1
        padded = (len(group) + 1) * length
        if padded > _FEW and padded - tokens - length > _PADDING * padded:
            yield group
            group, tokens = [], 0
        group.append(i)
        tokens += length
    yield group


def _equal(prompts: Sequence[Sequence[int]], most_tokens: int) -> Iterator[list[int]]:
    """Indices of prompts of one length, no more than go into a pass."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        by_length[len(prompt)].append(i)
    for length in sorted(by_length):
        indices, at_once = by_length[length], max(1, most_tokens // length)
        yield from (indices[start : start + at_once] for start in range(0, len(indices), at_once))


def _pass(model: nn.Module, prompts: Sequence[Sequence[int]], most_tokens: int) -> list[Any]:
    """Read prompts, padded on the right, where causal attention does not see it; one cache per layer."""
    tokens = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    layers: list[Any] = make_prompt_cache(model)
    for layer in layers:
        if type(layer) is KVCache:
            layer.step = max(1, tokens.shape[1])  # room for these, in place of 256
    step = max(1, most_tokens // len(prompts))
    for start in range(0, tokens.shape[1], step):
        model(mx.array(tokens[:, start : start + step]), cache=layers)  # the logits are never computed
        mx.eval([layer.state for layer in layers])
    return layers


def _trimmed(layer: KVCache, row: int, length: int, room: int) -> PromptCache:
    """One prompt's cache of a layer, (1, heads, length, width), without the padding of its batch."""
    cache = PromptCache()
    cache.room = room
    if length:
        cache.keys, cache.values = (table[row : row + 1, :, :length] for table in (layer.keys, layer.values))
        cache.offset = length
    return cache


def _row(layer: Any, row: int, rows: int) -> Any:
    """One prompt's cache of a layer that has read `rows` of one length: of all arrays, that row."""

    def cut(value: Any) -> Any:
        if isinstance(value, mx.array) and value.ndim > 1 and value.shape[0] == rows:
            return value[row : row + 1]
        return [cut(one) for one in value] if isinstance(value, list) else value

    if isinstance(layer, CacheList):
        return CacheList(*(_row(inner, row, rows) for inner in layer.caches))
    other = copy.copy(layer)
    vars(other).update({name: cut(value) for name, value in vars(layer).items()})
    return other
