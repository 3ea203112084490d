"""What a draft step and a target pass over k positions cost on this machine. Knows no acceptance."""

from __future__ import annotations

import statistics
import time
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from .gate import Costs
from .pair import Pair

BLOCKS = 3  # each measures everything once more, so that whatever else runs here slows all of it alike
WARM_UP = 2
REPEATS = 7
PREFIX = 32  # tokens already in the cache, if the pair holds as many


def measure(pair: Pair, max_draft_tokens: int) -> Costs:
    """Medians of forward passes with a filled cache, in seconds.

    Args:
        pair: the models, the draft with whatever adapter it carries.
        max_draft_tokens: Kmax; the target is timed over 1 .. Kmax + 1 positions.
    """
    prefix = max(1, min(PREFIX, (pair.context or PREFIX + max_draft_tokens + 1) - max_draft_tokens - 1))
    target: list[list[float]] = [[] for _ in range(max_draft_tokens + 1)]
    draft: list[float] = []
    for _ in range(BLOCKS):
        cache = _filled(pair.target, prefix)
        for k, times in enumerate(target, 1):
            times += _passes(pair.target, cache, k)
        draft += _passes(pair.draft, _filled(pair.draft, prefix), 1)
    return Costs(t_draft=statistics.median(draft), t_target=tuple(statistics.median(times) for times in target))


def _filled(model: nn.Module, prefix: int) -> list[Any]:
    cache: list[Any] = make_prompt_cache(model)
    mx.eval(model(mx.zeros((1, prefix), mx.int32), cache=cache))
    return cache


def _passes(model: nn.Module, cache: list[Any], k: int) -> list[float]:
    """Seconds of REPEATS passes over k positions, after WARM_UP others; the cache is as before."""
    ids = mx.zeros((1, k), mx.int32)
    found = []
    for _ in range(WARM_UP + REPEATS):
        began = time.perf_counter()
        mx.eval(model(ids, cache=cache))
        found.append(time.perf_counter() - began)
        trim_prompt_cache(cache, k)
    return found[WARM_UP:]
