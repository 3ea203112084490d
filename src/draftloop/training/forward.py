"""Logits at chosen positions only: the head over a large vocabulary is what costs, and prompts need none.

    inputs (B, L) -> hidden (B, L, D) -> the M chosen rows (M, D) -> logits (M, V)

Most models of mlx-lm are a body, `model`, and a head, `lm_head` or the tied embedding; but some scale or cap their
logits in between. So head and body are tried once against the model's own call, which is used where the two differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
from mlx import nn

PIECE_BYTES = 16 << 20
LEAST_PIECE = 64  # positions; fewer would leave the cores idle
_PROBE = ((3, 1, 2, 0, 1, 3), (1, 1, 0, 2, 3, 0))


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
    if _agrees(model):
        return Forward(
            lambda i, positions: _rows(model.model(i), positions),
            lambda rows: _head(model)(rows),
            lambda: _head_module(model),
        )
    say(f"the {name}'s logits are more than a head on its hidden states: computing them at every position (slower)")
    return Forward(lambda inputs, positions: _rows(model(inputs), positions), lambda logits: logits)


def _agrees(model: nn.Module) -> bool:
    probe = mx.array(_PROBE)
    try:
        short = _head(model)(model.model(probe))
    except (AttributeError, TypeError, ValueError):
        return False
    full = model(probe)
    return short.shape == full.shape and bool(mx.allclose(short, full, rtol=1e-5, atol=1e-6).item())


def _head(model: nn.Module) -> Callable[[mx.array], mx.array]:
    module = _head_module(model)
    head: Callable[[mx.array], mx.array] = module if "lm_head" in model else module.as_linear
    return head


def _head_module(model: nn.Module) -> nn.Module:
    module: nn.Module = model.lm_head if "lm_head" in model else model.model.embed_tokens
    return module


def _rows(values: mx.array, positions: mx.array) -> mx.array:
    """(B, L, D) and (M,) -> (M, D)."""
    return values.reshape(-1, values.shape[-1])[positions]
