"""Read rotary positions from a table, for decoding on a CPU. Knows no draft or target.

There MLX works out cosines and sines anew in both calls of every layer: over one to five tokens a dozen operations
so small that starting them is their whole cost. With a table five are left. A pass of one token takes 5.92 ms where it
took 6.26 (8 layers), one of the one-layer draft 0.57 where it took 0.66.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

FIRST_LENGTH = 512  # positions; a table grows to twice its length
WHOLE_LENGTH = 8_192  # positions of a model that are tabulated at once, where it has no more


def tabulate_positions(model: nn.Module, longest: int | None) -> None:
    """Have every plain `nn.RoPE` of a model read from a table; those with the same frequencies share one.

    Args:
        model: which.
        longest: positions that it is asked for at most; None is unlimited.
    """
    tables: dict[tuple[float, ...], _Table] = {}
    replaced = []
    for name, module in model.named_modules():
        if type(module) is nn.RoPE and not module.traditional:
            key = (module.dims, module.base, module.scale)
            if key not in tables:
                tables[key] = _Table(*key, longest)
            replaced.append((name, TabulatedRoPE(module, tables[key])))
    model.update_modules(tree_unflatten(replaced))


class TabulatedRoPE(nn.RoPE):  # type: ignore[misc]
    """The same rotation as the layer it takes the place of, bit for bit on a CPU."""

    def __init__(self, plain: nn.RoPE, table: _Table) -> None:
        super().__init__(plain.dims, plain.traditional, plain.base, plain.scale)
        self._table = table

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        """Rotate x (..., positions, dims), the first position being `offset`: a number, or one of each row (B,).

        What the table is not made for is computed as ever: other types than float32, heads that are rotated in part,
        and offsets of rows where the table may have to grow, as nobody knows them before they are computed.
        """
        by_row = isinstance(offset, mx.array)
        if x.dtype != mx.float32 or x.shape[-1] != self.dims or (by_row and not self._table.is_whole):
            return super().__call__(x, offset)
        rows = self._table.rows_of_each if by_row else self._table.rows
        cosines, sines = rows(offset, x.shape[-2])
        half = self.dims // 2
        turned = mx.concatenate([x[..., half:], x[..., :half]], axis=-1)
        return x * cosines + turned * sines


class _Table:
    """Cosines and signed sines of positions 0, 1, … (length, dims): halves turn against each other."""

    def __init__(self, dims: int, base: float, scale: float, longest: int | None) -> None:
        self._dims, self._base, self._scale = dims, base, scale
        self.is_whole = longest is not None and longest <= WHOLE_LENGTH
        self._length = 0
        self._grow(longest if longest is not None and self.is_whole else FIRST_LENGTH)

    def rows(self, first: int, count: int) -> tuple[mx.array, mx.array]:
        """Of `count` positions from `first` on."""
        if first + count > self._length:
            self._grow(max(2 * self._length, first + count))
        return self._cosines[first : first + count], self._sines[first : first + count]

    def rows_of_each(self, first: mx.array, count: int) -> tuple[mx.array, mx.array]:
        """Of `count` positions from each of `first` (B,) on, each (B, 1, count, dims).

        What lies outside of the table is padding before a text, or the rest of a row whose text is at its end: masked
        or not read, it gets the nearest position.
        """
        at = mx.clip(first[:, None] + mx.arange(count), 0, self._length - 1)[:, None]
        return self._cosines[at], self._sines[at]

    def _grow(self, length: int) -> None:
        half = self._dims // 2
        frequencies = mx.exp(mx.arange(half, dtype=mx.float32) * (-math.log(self._base) / half))
        angles = (mx.arange(length, dtype=mx.float32) * self._scale)[:, None] * frequencies
        cosines, sines = mx.cos(angles), mx.sin(angles)
        self._cosines = mx.concatenate([cosines, cosines], axis=-1)
        self._sines = mx.concatenate([-sines, sines], axis=-1)
        mx.eval(self._cosines, self._sines)
        self._length = length
