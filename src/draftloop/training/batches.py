"""Several examples as the arrays of one micro-batch. Knows no model.

B examples -> inputs (B, L) int32, padded on the right. Attention is causal, so padding on the right changes nothing to
its left; it is token 0 because some token must stand there, and no token is ever read as padding. Lengths alone say
which positions count: the M supervised ones are listed one after the other, example by example, as flat indices into
(B·L). L and M are rounded up so that few shapes repeat; the positions that M gains have weight 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .dataset.examples import Example, padded_shape
from .losses import Labels


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        examples: what it was made of, in the order of the rows.
        inputs: (B, L) int32 tokens.
        positions: (M,) int32, flat indices into (B·L) of the supervised positions.
        labels: tokens, temperature, rule and weight of these M positions.
        tokens: supervised positions, the sum of the weights.
    """

    examples: tuple[Example, ...]
    inputs: mx.array
    positions: mx.array
    labels: Labels
    tokens: int

    @property
    def size(self) -> int:
        """M."""
        return int(self.positions.shape[0])


def make_batch(examples: Sequence[Example]) -> Batch:
    """The arrays of some examples, at least one; each with any number of labels, none included."""
    # 1. Padded shapes: L inputs a row, M supervised positions.
    length, size = padded_shape(examples)
    inputs = np.zeros((len(examples), length), np.int32)  # (B, L)
    positions, tokens = np.zeros(size, np.int32), np.zeros(size, np.int32)  # (M,)
    temperature, weights = np.ones((size, 1), np.float32), np.zeros(size, np.float32)
    match, greedy = np.zeros(size, np.bool_), np.zeros(size, np.bool_)

    # 2. The labels of each example come after those of the one before.
    stop = 0
    for row, example in enumerate(examples):
        inputs[row, : len(example.inputs)] = example.inputs
        start, stop = stop, stop + len(example.labels)
        positions[start:stop] = row * length + np.array(example.positions, np.int32)
        tokens[start:stop] = example.labels
        temperature[start:stop] = example.sampler.temperature or 1.0
        weights[start:stop] = 1.0
        match[start:stop], greedy[start:stop] = example.rule == "match", example.sampler.temperature == 0

    # 3. On the device; what no position needs is None, so that the losses leave out its work.
    labels = Labels(
        tokens=mx.array(tokens),
        temperature=mx.array(temperature),
        weights=mx.array(weights),
        greedy=mx.array(greedy) if greedy.any() else None,
        match=mx.array(match) if match.any() else None,
    )
    return Batch(tuple(examples), mx.array(inputs), mx.array(positions), labels, tokens=stop)
