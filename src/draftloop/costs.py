"""What a draft step and a target pass over k positions cost on this machine. Knows no acceptance."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
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


def measure(pair: Pair, drafts: Mapping[str, Path | None], max_draft_tokens: int) -> dict[str, Costs]:
    """Medians of forward passes with a filled cache.

    Args:
        pair: the models; afterwards its draft carries the last of `drafts`.
        drafts: name to adapter directory; None is the bare draft, which has less to compute.
        max_draft_tokens: Kmax; the target is timed over 1 .. Kmax + 1 positions.

    Returns:
        The costs of each draft, in seconds; the target's are the same in all.
    """
    prefix = max(1, min(PREFIX, (pair.context or PREFIX + max_draft_tokens + 1) - max_draft_tokens - 1))
    target: list[list[float]] = [[] for _ in range(max_draft_tokens + 1)]
    draft: dict[str, list[float]] = {name: [] for name in drafts}
    for _ in range(BLOCKS):
        cache = _filled(pair.target, prefix)
        for k, times in enumerate(target, 1):
            times += _passes(pair.target, cache, k)
        for name, path in drafts.items():
            variant = pair.with_adapter(path)
            draft[name] += _passes(variant.draft, _filled(variant.draft, prefix), 1)
    medians = tuple(statistics.median(times) for times in target)
    return {name: Costs(t_draft=statistics.median(times), t_target=medians) for name, times in draft.items()}


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
