"""A whole pass: a model reads sequences from their beginning, and nothing goes on from where it ends.

Each has a fresh cache. Most models compute the same without one, but some do not: they take positions, or the entries
of layers that share them, from the cache.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import CacheList, ConcatenateKVCache, KVCache, make_prompt_cache


def read_whole(model: nn.Module, tokens: mx.array) -> mx.array:
    """What the model gives for tokens (B, L), padded on the right: logits (B, L, V), not evaluated."""
    found: mx.array = model(tokens, cache=[_kept_as_they_are(cache) for cache in make_prompt_cache(model)])
    return found


def _kept_as_they_are(cache: Any) -> Any:
    """Without room for tokens to come: keys and values are kept as they are, and not copied into a larger buffer."""
    if type(cache) is CacheList:
        return CacheList(*map(_kept_as_they_are, cache.caches))
    return ConcatenateKVCache() if type(cache) is KVCache else cache
