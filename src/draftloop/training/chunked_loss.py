"""A loss over many positions and a large vocabulary, a piece of the positions at a time. Knows no model but its head.

    rows (M, D) -> head, a piece at a time -> logits (m, V) -> losses.terms -> sums over pieces -> losses.combine

The head's logits are what fills the memory: over M positions and a vocabulary V they are 4·M·V bytes, and a loss with
its gradient takes eight to ten times that. So each piece is computed, differentiated and evaluated by itself. What is
kept of it is its gradient with respect to the rows that went into the head, and its share of the gradient with respect
to the head's own parameters, an adapter of the vocabulary's size. mx.checkpoint alone is not enough: MLX allocates
ahead of what it has computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_map

from ..config import Loss
from .batches import Batch
from .losses import Sums, Terms, combine, draft_logits, lk_weight, terms
from .teacher import TeacherParts


@dataclass(frozen=True)
class ChunkedLoss:
    """What a loss needs beside the rows (M, D) that go into the head.

    Attributes:
        kind: the loss.
        head: rows (m, D) to logits (m, V).
        batch: whose labels go with the rows.
        teacher: its distributions there.
        width: W, the tokens that target and draft share.
        module: whose parameters the head reads, adapted ones among them; None where it has none.
        accepted: mean overlap that λ of `lk` is made of; None takes that of the positions, which costs another pass.
    """

    kind: Loss
    head: Callable[[mx.array], mx.array]
    batch: Batch
    teacher: TeacherParts
    width: int
    module: nn.Module | None = None
    accepted: float | None = None

    def sums(self, rows: mx.array, size: int) -> Sums:
        """The sums of a micro-batch, with a gradient through `rows` and the head's trainable parameters.

        Args:
            rows: (M, D).
            size: positions a piece; with M or more all is done at once, and nothing is evaluated here.
        """
        if size >= rows.shape[0]:
            return combine(self.kind, self._terms(rows, slice(None)), self._share())
        # 1. Rows and parameters without their past: a piece's graph ends at them and is freed with it.
        pieces = _pieces(rows, size)
        traced = {} if self.module is None else self.module.trainable_parameters()
        fixed, parameters = _constant(rows), tree_map(_constant, traced)
        try:
            self._set(parameters)
            # 2. Where λ of `lk` depends on all positions, it takes a pass of its own.
            share = self._share()
            if self.kind == "lk" and share is None:
                totals = self._totals(fixed, pieces)
                share = lk_weight(totals.overlap, totals.tokens)
            # 3. Sums and gradients, piece by piece.
            values, row_gradients, head_gradients = [], [], tree_map(mx.zeros_like, parameters)
            for piece in pieces:
                sums, of_rows, of_head = self._with_gradient(fixed[piece], parameters, piece, share)
                values.append(sums)
                row_gradients.append(of_rows)
                head_gradients = tree_map(lambda total, more: _constant(total + more), head_gradients, of_head)
        finally:
            self._set(traced)
        # 4. Back in the caller's graph: terms that are 0 carry the gradients.
        loss, *others = (mx.array(sum(column)) for column in zip(*values, strict=True))
        carried = _carrying(rows, mx.concatenate(row_gradients))
        for (_, own), (_, gradient) in zip(tree_flatten(traced), tree_flatten(head_gradients), strict=True):
            carried = carried + _carrying(own, gradient)
        return Sums(loss + carried, *others)

    def values(self, rows: mx.array, size: int) -> Sums:
        """The same numbers without a gradient, evaluated piece by piece. Args as `sums`."""
        return combine(self.kind, self._totals(rows, _pieces(rows, size)), self._share())

    def _share(self) -> mx.array | None:
        """λ, where what it is made of is given."""
        return None if self.accepted is None else lk_weight(mx.array(self.accepted), mx.array(1.0))

    def _totals(self, rows: mx.array, pieces: list[slice]) -> Terms:
        values = [[term.item() for term in self._terms(rows[piece], piece)] for piece in pieces]
        return Terms(*(mx.array(sum(column)) for column in zip(*values, strict=True)))

    def _terms(self, rows: mx.array, piece: slice) -> Terms:
        labels, teacher = self.batch.labels.piece(piece), self.teacher.piece(piece)
        draft = draft_logits(self.head(rows), labels, self.width, teacher.tokens)
        return terms(self.kind, draft, teacher, labels)

    def _with_gradient(
        self, rows: mx.array, parameters: Any, piece: slice, share: mx.array | None
    ) -> tuple[tuple[float, ...], mx.array, Any]:
        """The sums of a piece as numbers, and the loss's gradients with respect to its rows and to the parameters."""

        def loss(rows: mx.array, parameters: Any) -> tuple[mx.array, ...]:
            self._set(parameters)
            return tuple(combine(self.kind, self._terms(rows, piece), share))

        values, (of_rows, of_head) = mx.value_and_grad(loss, argnums=(0, 1))(rows, parameters)
        self._set(parameters)
        mx.eval(values, of_rows, of_head)
        return tuple(value.item() for value in values), _constant(of_rows), of_head

    def _set(self, parameters: Any) -> None:
        if self.module is not None:
            self.module.update(parameters)


def _pieces(rows: mx.array, size: int) -> list[slice]:
    """As few as `size` allows, and all about as large: each costs some time, however few positions it has."""
    count = rows.shape[0]
    even = math.ceil(count / math.ceil(count / size))
    return [slice(start, min(start + even, count)) for start in range(0, count, even)]


def _carrying(values: mx.array, gradient: mx.array) -> mx.array:
    """0, with `gradient` as its gradient with respect to `values`."""
    return mx.sum((gradient * (values - mx.stop_gradient(values))).astype(mx.float32))


def _constant(values: mx.array) -> mx.array:
    """The same numbers without their past: while a gradient is traced, MLX keeps all that an array was made of."""
    return mx.array(np.array(values.astype(mx.float32))).astype(values.dtype)
