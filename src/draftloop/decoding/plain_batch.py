"""Plain steps of several outputs at once: one pass of the target over a batch of their caches. Knows no draft.

A model reads its weights once for the whole batch, so with several outputs under way a batch may be faster than
speculation in turn. Outputs join between two turns of theirs and leave with a cache of their own, which speculation
goes on from. A model whose outputs would be others in a batch (`batch_probe`) has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from .decoder import Decoding, Round


class PlainBatch:
    """Some outputs of one model, until `release`.

    Args:
        model: the target of all of them.
        members: at least one, each between two turns and not finished.
    """

    def __init__(self, model: nn.Module, members: Sequence[Decoding]) -> None:
        self._model, self.members = model, list(members)
        rows = [member.target_cache.stock() for member in self.members]
        self._layers = _merged(rows)

    def step(self) -> list[Round]:
        """One token of each member, in their order; a member that has finished since must have left."""
        tokens = mx.array([[member.pending] for member in self.members], mx.uint32)
        logits = self._model(tokens, cache=self._layers)  # (c, 1, V)
        rows = [logits[i] for i in range(len(self.members))]
        drawn = [member.draw(row) for member, row in zip(self.members, rows, strict=True)]
        mx.eval(drawn)
        return [
            member.take(int(token.item()), row) for member, token, row in zip(self.members, drawn, rows, strict=True)
        ]

    def release(self) -> None:
        """Give every member the cache of its row; the batch is of no use afterwards."""
        for row, member in enumerate(self.members):
            member.target_cache.hold(_extracted(self._layers, row))
            member.target_cache.evaluate()
        self._layers, self.members = [], []


def _merged(rows: Sequence[Sequence[Any]]) -> list[Any]:
    """One cache of a batch for each layer; layers that share one share it again."""
    found: dict[int, Any] = {}
    for of_layer in zip(*rows, strict=True):
        if id(of_layer[0]) not in found:
            found[id(of_layer[0])] = type(of_layer[0]).merge(of_layer)
    return [found[id(cache)] for cache in rows[0]]


def _extracted(layers: Sequence[Any], row: int) -> list[Any]:
    found: dict[int, Any] = {}
    for layer in layers:
        if id(layer) not in found:
            found[id(layer)] = layer.extract(row)
    return [found[id(layer)] for layer in layers]
