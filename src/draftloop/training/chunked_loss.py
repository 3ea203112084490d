"""A loss over many positions and a large vocabulary, a piece of the positions at a time. Knows no model but its head.

The head's logits are what fills the memory: M positions of a vocabulary V are 4·M·V bytes, and a loss with its
gradient takes eight to ten of them. So each piece is computed, differentiated and evaluated by itself, and all that is
kept of it is its gradient with respect to the rows that went into the head; what it says to the head's own parameters,
an adapter of the vocabulary's size, is added to one sum. mx.checkpoint alone is not enough: MLX allocates ahead of what
it has computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_map

from ..config import Loss
from .batches import Batch
from .losses import Sums, Terms, combine, draft_logits, lk_share, terms
from .teacher import TeacherParts


@dataclass(frozen=True)
class ChunkedLoss:
    """What a loss needs beside the rows (M, D) that go into the head.

    Attributes:
        kind: the loss.
        head: rows (m, D) to logits (m, V).
        batch: whose labels, temperatures, rules and weights go with the rows.
        taught: what the teacher says there.
        width: W, ids that target and draft share.
        module: whose parameters the head reads, adapted ones among them; None where it has none.
    """

    kind: Loss
    head: Callable[[mx.array], mx.array]
    batch: Batch
    taught: TeacherParts
    width: int
    module: nn.Module | None = None

    def sums(self, rows: mx.array, size: int) -> Sums:
        """The sums of a micro-batch, with a gradient through `rows` and the head's trainable parameters.

        Args:
            rows: (M, D).
            size: positions a piece; with M or more all is done at once, and nothing is evaluated here.
        """
        if size >= rows.shape[0]:
            return combine(self.kind, self._terms(rows, slice(None)))
        pieces = [slice(start, start + size) for start in range(0, rows.shape[0], size)]
        traced = self._parameters()
        fixed, parameters = _constant(rows), tree_map(_constant, traced)
        try:
            self._set(parameters)
            share = self._share(fixed, pieces)
            values, of_rows, of_head = [], [], tree_map(mx.zeros_like, parameters)
            for piece in pieces:
                found, towards, of_head = self._with_gradient(fixed, parameters, piece, share, of_head)
                values.append(found)
                of_rows.append(towards)
        finally:
            self._set(traced)
        loss, tokens, acceptance = (mx.array(sum(column)) for column in zip(*values, strict=True))
        moved = _moved(rows, mx.concatenate(of_rows))
        for (_, own), (_, towards) in zip(tree_flatten(traced), tree_flatten(of_head), strict=True):
            moved = moved + _moved(own, towards)
        return Sums(loss + moved, tokens, acceptance)

    def values(self, rows: mx.array, size: int) -> Sums:
        """The same numbers without a gradient, evaluated piece by piece. Args as `sums`."""
        pieces = [slice(start, start + size) for start in range(0, rows.shape[0], size)]
        return combine(self.kind, self._totals(rows, pieces))

    def _totals(self, rows: mx.array, pieces: list[slice]) -> Terms:
        found = [[term.item() for term in self._terms(rows[piece], piece)] for piece in pieces]
        return Terms(*(mx.array(sum(column)) for column in zip(*found, strict=True)))

    def _terms(self, rows: mx.array, piece: slice) -> Terms:
        asked, told = self.batch.asked.piece(piece), self.taught.piece(piece)
        return terms(self.kind, draft_logits(self.head(rows), asked, self.width, told.ids), told, asked)

    def _share(self, rows: mx.array, pieces: list[slice]) -> mx.array | None:
        """What `lk` weighs its parts by rests on all positions, so it takes a pass of its own; None for the others."""
        if self.kind != "lk":
            return None
        found = self._totals(rows, pieces)
        return lk_share(found.overlap, found.tokens)

    def _with_gradient(
        self, rows: mx.array, parameters: Any, piece: slice, share: mx.array | None, of_head: Any
    ) -> tuple[tuple[float, ...], mx.array, Any]:
        """The sums of a piece as numbers, their gradient with respect to its rows, and `of_head` with what is added.

        `of_head` sums the gradients with respect to the head's parameters.
        """

        def loss(rows: mx.array, parameters: Any) -> tuple[mx.array, ...]:
            self._set(parameters)
            return tuple(combine(self.kind, self._terms(rows, piece), share))

        values, (towards, own) = mx.value_and_grad(loss, argnums=(0, 1))(rows[piece], parameters)
        self._set(parameters)
        mx.eval(values, towards, own)
        added = tree_map(lambda before, more: _constant(before + more), of_head, own)
        return tuple(value.item() for value in values), _constant(towards), added

    def _parameters(self) -> Any:
        return {} if self.module is None else self.module.trainable_parameters()

    def _set(self, parameters: Any) -> None:
        if self.module is not None:
            self.module.update(parameters)


def _moved(values: mx.array, towards: mx.array) -> mx.array:
    """0, with `towards` as its gradient with respect to `values`."""
    return mx.sum((towards * (values - mx.stop_gradient(values))).astype(mx.float32))


def _constant(values: mx.array) -> mx.array:
    """The same numbers without their past: while a gradient is traced, MLX keeps all that an array was made of."""
    return mx.array(np.array(values.astype(mx.float32))).astype(values.dtype)
