"""Examples side by side in one array. Knows no model.

B examples -> inputs (B, L) int32, filled up on the right. Attention is causal, so what stands on the right of an
example changes nothing in it; the filler is id 0 because some id must stand there, and no id is ever read as padding.
Which positions count is said by lengths alone: the M supervised ones are listed one after the other, example by
example, as flat indices into (B·L). L and M are rounded up so that few shapes repeat; what M gained has weight 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .dataset.examples import Example
from .losses import Labels
from .padding import LENGTH_STEP, POSITION_STEP, round_up


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        examples: what it was made of, in the order of the rows.
        inputs: (B, L) int32 ids.
        positions: (M,) int32, flat indices into (B·L) of the supervised positions.
        asked: labels, temperature, rule and weight of these M positions.
        tokens: supervised positions, the sum of the weights.
    """

    examples: tuple[Example, ...]
    inputs: mx.array
    positions: mx.array
    asked: Labels
    tokens: int

    @property
    def size(self) -> int:
        """M."""
        return int(self.positions.shape[0])


def make_batch(examples: Sequence[Example]) -> Batch:
    """The arrays of some examples, at least one; each with any number of labels, none included."""
    length = round_up(max(len(example.inputs) for example in examples), LENGTH_STEP)
    tokens = sum(len(example.labels) for example in examples)
    size = round_up(tokens, POSITION_STEP)
    inputs = np.zeros((len(examples), length), np.int32)
    positions, labels = np.zeros(size, np.int32), np.zeros(size, np.int32)
    temperature, weights = np.ones((size, 1), np.float32), np.zeros(size, np.float32)
    match, greedy = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    start = 0
    for row, example in enumerate(examples):
        inputs[row, : len(example.inputs)] = example.inputs
        stop = start + len(example.labels)
        positions[start:stop] = row * length + np.array(example.positions, np.int32)
        labels[start:stop] = example.labels
        temperature[start:stop] = example.sampler.temperature or 1.0
        weights[start:stop] = 1.0
        match[start:stop], greedy[start:stop] = example.rule == "match", example.sampler.temperature == 0
        start = stop
    return Batch(
        examples=tuple(examples),
        inputs=mx.array(inputs),
        positions=mx.array(positions),
        asked=Labels(
            labels=mx.array(labels),
            temperature=mx.array(temperature),
            weights=mx.array(weights),
            greedy=mx.array(greedy) if greedy.any() else None,
            match=mx.array(match) if match.any() else None,
        ),
        tokens=tokens,
    )
