"""Greedy outputs of two ways to compute them, which may part at a near tie: another batch rounds otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from mlx import nn

FLOAT32 = 1e-3
"""Between the two best logits, of some ten: a hundred times what float32 rounds there, and far below a wrong token."""


def parts_at_a_near_tie(
    target: nn.Module, prompt: Sequence[int], ours: Sequence[int], plain: Sequence[int], bound: float = FLOAT32
) -> bool:
    """Whether the outputs differ; where they first do, the target's two best logits must lie within `bound`."""
    first = next((at for at, (one, other) in enumerate(zip(ours, plain, strict=False)) if one != other), None)
    if first is None:
        assert len(ours) == len(plain)
        return False
    logits = np.array(target(mx.array([[*prompt, *plain[:first]]]))[0, -1].astype(mx.float32))
    best, second = np.sort(logits)[:-3:-1]
    assert best - second < bound, f"token {first} is {ours[first]} instead of {plain[first]}"
    return True
