"""The batch plan: the order of a training, a function of examples, settings and seed alone. Knows no model and no mlx.

Epoch -> all examples once, and replay drawn anew -> shuffled micro-batches of similar length -> windows of
`gradient_accumulation_steps` micro-batches, one optimizer step each. A window ends with its epoch, so the last one may
be smaller; the last epoch ends with the steps. Step s of a training is window s of the plan: a resumed run needs
nothing but s to go on in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from ...config import Training
from ...data.replay import draw_replay, replay_tokens
from .examples import Example

STEPS_AT_ONE_TOKEN = 5.8  # optimizer steps by the root of the supervised tokens (docs/decisions: learning)
_ORDER = 0x0D0E  # keeps this random stream apart from others of one seed
_NEIGHBOURS = 8  # micro-batches whose examples are sorted by length together


@dataclass(frozen=True, slots=True)
class Window:
    """What one optimizer step is made of: micro-batches of examples, and the pass over the failures, from 0."""

    epoch: int
    micro_batches: tuple[tuple[Example, ...], ...]


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """All windows of a training, and the share of its supervised tokens that is replayed."""

    windows: tuple[Window, ...]
    replay_share: float

    @property
    def passes(self) -> int:
        """Epochs begun; the last one may not be to its end."""
        return self.windows[-1].epoch + 1

    @property
    def micro_batches(self) -> list[tuple[Example, ...]]:
        """Those of all windows."""
        return [batch for window in self.windows for batch in window.micro_batches]


def make_batch_plan(
    fresh: Sequence[Example],
    pool: Mapping[str, Example],
    settings: Training,
    steps: int | None = None,
    first_epoch: int = 0,
) -> BatchPlan:
    """The windows of so many optimizer steps.

    Args:
        fresh: trained on once an epoch each; at least one example with a label.
        pool: what replay is drawn from, by record id; empty for no replay.
        settings: epochs, batch sizes, accumulation, replay ratio and seed.
        steps: windows in all; by default as many as `settings.epochs` epochs have, or `steps_for` where that is auto.
        first_epoch: the number of the first epoch, from which order and replay are drawn.
    """
    # 1. How many steps, and how many tokens of an epoch are replayed.
    lengths = {record_id: len(example.labels) for record_id, example in pool.items()}
    tokens = sum(len(example.labels) for example in fresh)
    if steps is None and settings.epochs == "auto":
        steps = steps_for(tokens)
    replayed = replay_tokens(tokens, settings.replay_ratio) if lengths else 0

    # 2. Epoch after epoch until there are as many.
    windows: list[Window] = []
    for epoch in count(first_epoch):
        if steps is None and epoch - first_epoch == settings.epochs:
            break
        if steps is not None and len(windows) >= steps:
            break
        drawn = draw_replay(lengths, replayed, settings.seed, epoch)
        examples = [*fresh, *(pool[draw.record_id].shortened(draw.tokens) for draw in drawn)]
        micro_batches = order(examples, settings, np.random.default_rng([settings.seed, epoch, _ORDER]))
        size = settings.gradient_accumulation_steps
        windows += [Window(epoch, tuple(micro_batches[i : i + size])) for i in range(0, len(micro_batches), size)]
    share = replayed / (tokens + replayed) if tokens + replayed else 0.0
    return BatchPlan(tuple(windows[:steps]), share)


def steps_for(tokens: int) -> int:
    """Optimizer steps on failures of so many supervised tokens.

    Twice the tokens get √2 times the steps: few failures need many epochs, for as long as the split `validation` says
    that it helps; many need fewer.
    """
    return max(1, round(STEPS_AT_ONE_TOKEN * math.sqrt(tokens)))


def order(examples: Sequence[Example], settings: Training, random: np.random.Generator) -> list[tuple[Example, ...]]:
    """Shuffled micro-batches in which lengths are similar, so that little is padded.

    Each holds at most `batch_size` examples and, if more than one, at most `batch_tokens` supervised tokens.
    """
    shuffled = [examples[i] for i in random.permutation(len(examples))]
    micro_batches: list[tuple[Example, ...]] = []
    for start in range(0, len(shuffled), settings.batch_size * _NEIGHBOURS):
        near = sorted(shuffled[start : start + settings.batch_size * _NEIGHBOURS], key=lambda example: len(example.ids))
        micro_batches += _filled(near, settings.batch_size, settings.batch_tokens)
    return [micro_batches[i] for i in random.permutation(len(micro_batches))]


def _filled(examples: Sequence[Example], most: int, tokens: int) -> Iterator[tuple[Example, ...]]:
    """Neighbours together until either bound is met."""
    batch: list[Example] = []
    left = tokens
    for example in examples:
        if batch and (len(batch) == most or len(example.labels) > left):
            yield tuple(batch)
            batch, left = [], tokens
        batch.append(example)
        left -= len(example.labels)
    if batch:
        yield tuple(batch)
