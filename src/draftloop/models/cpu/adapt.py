"""Adapt a model to decode well on a CPU; its outputs change by a rounding error at most."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from .gated_layers import quicken_gates
from .rope import tabulate_positions
from .weight_layout import lay_out


def is_adapted() -> bool:
    """Whether anything is done here."""
    return bool(mx.default_device() == mx.cpu)


def adapt_to_cpu(model: nn.Module, longest: int | None, *, float32_only: bool = False) -> None:
    """Widen to float32, order the weights in memory, tabulate positions, quicken gates.

    No weight is evaluated. Nothing is done where MLX computes elsewhere.

    Args:
        model: as mlx-lm loads it.
        longest: positions that it is asked for at most; None is unlimited.
        float32_only: stop after the first: 16-bit matrix products are forty times slower there.
    """
    if not is_adapted():
        return
    model.set_dtype(mx.float32)
    if not float32_only:
        lay_out(model)
        tabulate_positions(model, longest)
        quicken_gates(model)
