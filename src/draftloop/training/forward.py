"""Logits at chosen positions only: the head over a large vocabulary is what costs, and prompts need none.

    inputs (B, L) -> hidden (B, L, D) -> the M chosen rows (M, D) -> logits (M, V)

Where no head can be found (`models.head`), logits are computed at every position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
from mlx import nn

from ..caches import read_whole
from ..models.head import find_head

PIECE_BYTES = 16 << 20
LEAST_PIECE = 64  # positions; fewer would leave the cores idle


def positions_at_a_time(width: int, piece_bytes: int = PIECE_BYTES) -> int:
    """Positions whose logits over `width` tokens take so many bytes in float32."""
    return max(LEAST_PIECE, piece_bytes // (4 * width))


@dataclass(frozen=True)
class Forward:
    """From inputs (B, L) and flat positions (M,) to logits (M, V), in two halves: the second may be done in pieces.

    Attributes:
        hidden: inputs and positions to rows (M, D).
        head: rows (m, D) to logits (m, V).
        module: gives the module whose parameters the head reads, as it is now: an adapter may have been put on it. None
            where it has none.
    """

    hidden: Callable[[mx.array, mx.array], mx.array]
    head: Callable[[mx.array], mx.array]
    module: Callable[[], nn.Module | None] = lambda: None

    def __call__(self, inputs: mx.array, positions: mx.array) -> mx.array:
        """Both halves at once."""
        return self.head(self.hidden(inputs, positions))


def make_forward(model: nn.Module, name: str, say: Callable[[str], None]) -> Forward:
    """The logits at chosen positions of `model`, compared once with those of its own call.

    Args:
        model: in mlx-lm's shape; it may change its weights or adapter later, but not its layers.
        name: target or draft, for the message.
        say: told when head and body are not all of the model.
    """
    head = find_head(model)
    if head is not None:
        return Forward(lambda inputs, positions: _rows(head.hidden(inputs), positions), head, head.module)
    say(f"the {name}'s logits are more than a head on its hidden states: computing them at every position (slower)")
    return Forward(lambda inputs, positions: _rows(read_whole(model, inputs), positions), lambda logits: logits)


def _rows(values: mx.array, positions: mx.array) -> mx.array:
    """(B, L, D) and (M,) -> (M, D)."""
    return values.reshape(-1, values.shape[-1])[positions]
