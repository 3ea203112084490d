"""Prompt caches: many prompts prefilled together, their caches cut to length for mlx-lm to merge. Knows no output.

mlx-lm reads the prompts of a batch in one pass that pads all to the longest, rolls what it has read of each to the
right, and copies it three times more, with 256 tokens of room. Prefilled here, prompts of like length share a pass,
`_cut_to_length` trims the padding off, and each cache has room for what will be generated. Rejected tokens are trimmed
in `decoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.cache import BatchKVCache, KVCache, make_prompt_cache

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
    """Whether a model's cache is the keys and values of every token alone: these can be cut to length."""
    return all(type(layer) is KVCache for layer in make_prompt_cache(model))


def read(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    room: int,
    most_tokens: int,
    enough: Callable[[], bool] = lambda: False,
) -> list[list[PromptCache]] | None:
    """Prefill a cache for each prompt, with all of its tokens but the last.

    Args:
        model: one whose caches `are_plain`.
        prompts: tokens of each, at least one.
        room: tokens that a cache has to take in after each.
        most_tokens: in one pass, padding included; at least as many as there are prompts.
        enough: called before every pass; true ends the prefill. It may raise to stop.

    Returns:
        One cache per layer for each prompt; None where it was enough.
    """
    caches: dict[int, list[PromptCache]] = {}
    for group in _alike(prompts):
        if enough():
            return None
        layers = _pass(model, [prompts[i][:-1] for i in group], most_tokens)
        for row, i in enumerate(group):
            caches[i] = [_cut_to_length(layer, row, len(prompts[i]) - 1, room) for layer in layers]
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


def _pass(model: nn.Module, prompts: Sequence[Sequence[int]], most_tokens: int) -> list[KVCache]:
    """Read prompts of like length, padded on the right, where causal attention does not see it; one cache per layer."""
    tokens = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    layers: list[KVCache] = make_prompt_cache(model)
    for layer in layers:
        layer.step = max(1, tokens.shape[1])  # room for these, in place of 256
    step = max(1, most_tokens // len(prompts))
    for start in range(0, tokens.shape[1], step):
        model(mx.array(tokens[:, start : start + step]), cache=layers)  # the logits are never computed
        mx.eval([layer.state for layer in layers])
    return layers


def _cut_to_length(layer: KVCache, row: int, length: int, room: int) -> PromptCache:
    """One prompt's cache of a layer, (1, heads, length, width), without the padding of its batch."""
    cache = PromptCache()
    cache.room = room
    if length:
        cache.keys, cache.values = (table[row : row + 1, :, :length] for table in (layer.keys, layer.values))
        cache.offset = length
    return cache
