"""The order of a whole training, as a function of examples, settings and seed alone. Knows no model and no mlx.

Epoch -> all failures once, and replay drawn anew -> shuffled micro-batches of similar length -> windows of
`gradient_accumulation_steps` micro-batches, one optimizer step each. A window ends with its epoch, so the last one may
be smaller. Step s of a training is window s of the plan: a resumed run needs nothing but s to go on in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..config import Training
from ..replay import draw, replay_tokens
from .examples import Example

_ORDER = 0x0D0E  # keeps this random stream apart from others of one seed
_NEIGHBOURS = 8  # micro-batches whose examples are sorted by length together


@dataclass(frozen=True, slots=True)
class Window:
    """What one optimizer step is made of: an epoch, counted from 0, and micro-batches of examples."""

    epoch: int
    micro_batches: tuple[tuple[Example, ...], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All windows of a training, and how many of its supervised tokens are replayed ones."""

    windows: tuple[Window, ...]
    tokens: int
    replayed_tokens: int

    @property
    def replay_share(self) -> float:
        """Replayed tokens over all supervised tokens."""
        return self.replayed_tokens / self.tokens if self.tokens else 0.0


def make_plan(failures: Sequence[Example], pool: Mapping[str, Example], settings: Training) -> Plan:
    """The windows of `settings.epochs` epochs.

    Args:
        failures: what is trained on, each once an epoch.
        pool: what replay is drawn from, by record id; empty for no replay.
        settings: epochs, batch size, accumulation, replay ratio and seed.
    """
    windows: list[Window] = []
    fresh = sum(len(example.labels) for example in failures)
    lengths = {record_id: len(example.labels) for record_id, example in pool.items()}
    replayed = replay_tokens(fresh, settings.replay_ratio) if lengths else 0
    for epoch in range(settings.epochs):
        drawn = draw(lengths, replayed, settings.seed, epoch)
        examples = [*failures, *(pool[one.record_id].shortened(one.tokens) for one in drawn)]
        micro_batches = order(examples, settings.batch_size, np.random.default_rng([settings.seed, epoch, _ORDER]))
        size = settings.gradient_accumulation_steps
        windows += [Window(epoch, tuple(micro_batches[i : i + size])) for i in range(0, len(micro_batches), size)]
    return Plan(tuple(windows), settings.epochs * (fresh + replayed), settings.epochs * replayed)


def order(examples: Sequence[Example], size: int, random: np.random.Generator) -> list[tuple[Example, ...]]:
    """Shuffled micro-batches in which lengths are similar, so that little is padded."""
    shuffled = [examples[i] for i in random.permutation(len(examples))]
    micro_batches: list[tuple[Example, ...]] = []
    for start in range(0, len(shuffled), size * _NEIGHBOURS):
        near = sorted(shuffled[start : start + size * _NEIGHBOURS], key=lambda example: len(example.ids))
        micro_batches += [tuple(near[i : i + size]) for i in range(0, len(near), size)]
    return [micro_batches[i] for i in random.permutation(len(micro_batches))]
