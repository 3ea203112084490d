"""The batch plan: the order of a training, a function of examples, settings and seed alone. Knows no model and no mlx.

Epoch -> all examples once, and replay drawn anew -> shuffled micro-batches of similar length -> windows of
`gradient_accumulation_steps` micro-batches, one optimizer step each. A window ends with its epoch, so the last one may
be smaller; the last epoch ends with the steps. Step s of a training is window s of the plan: a resumed run needs
nothing but s to go on in the same order.

Where a source would have more than its share of an epoch (`epoch_tokens`), some of its examples are left to other
epochs, drawn anew for each, and those of the others come more than once instead. An epoch has as many tokens as before.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from ...config import Training
from ...data.replay import draw_from_pool, replay_tokens
from ...data.source_share import tokens_by_source
from .examples import Example

STEPS_AT_ONE_TOKEN = 5.8  # optimizer steps by the root of the supervised tokens (docs/decisions: learning)
_ORDER, _REPLAY, _FRESH = 0x0D0E, 0x5E91A7, 0xF4E5  # keep these random streams apart
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


@dataclass(frozen=True, slots=True)
class EpochTokens:
    """What an epoch has of each source, in supervised tokens; None where none is bounded.

    Attributes:
        fresh: of the failures and samples.
        replay: of what is replayed.
    """

    fresh: dict[str, int] | None
    replay: dict[str, int] | None


def epoch_tokens(fresh: Iterable[Example], pool: Iterable[Example], settings: Training) -> EpochTokens:
    """Share out an epoch so that no source has more than `training.max_source_share` of its supervised tokens.

    Replay is shared out first, and what it takes counts for the rest. A source that is alone in either has all of it.
    """
    of_fresh, of_pool = labels_by_source(fresh), labels_by_source(pool)
    tokens, share = of_fresh.total(), settings.max_source_share
    replayed = replay_tokens(tokens, settings.replay_ratio) if of_pool.total() else 0
    replay = tokens_by_source(of_pool, replayed, share)
    drawn = tokens_by_source(of_fresh, tokens, share, replay)
    in_proportion = tokens_by_source(of_pool, replayed, 1.0)
    return EpochTokens(None if drawn == of_fresh else drawn, None if replay == in_proportion else replay)


def labels_by_source(examples: Iterable[Example]) -> Counter[str]:
    """Supervised tokens of each source."""
    tokens = Counter[str]()
    for example in examples:
        tokens[example.source] += len(example.labels)
    return tokens


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
    tokens = sum(len(example.labels) for example in fresh)
    if steps is None and settings.epochs == "auto":
        steps = steps_for(tokens)
    replayed = replay_tokens(tokens, settings.replay_ratio) if pool else 0
    of_source = epoch_tokens(fresh, pool.values(), settings)

    # 2. Epoch after epoch until there are as many.
    windows: list[Window] = []
    for epoch in count(first_epoch):
        if steps is None and epoch - first_epoch == settings.epochs:
            break
        if steps is not None and len(windows) >= steps:
            break
        examples, random = list(fresh), np.random.default_rng([settings.seed, epoch, _REPLAY])
        if of_source.fresh is not None:
            examples = _drawn(fresh, of_source.fresh, np.random.default_rng([settings.seed, epoch, _FRESH]))
        if of_source.replay is not None:
            examples += _drawn(pool.values(), of_source.replay, random)
        else:
            examples += _draw(pool.values(), replayed, random)
        micro_batches = order(examples, settings, np.random.default_rng([settings.seed, epoch, _ORDER]))
        size = settings.gradient_accumulation_steps
        windows += [Window(epoch, tuple(micro_batches[i : i + size])) for i in range(0, len(micro_batches), size)]
    share = replayed / (tokens + replayed) if tokens + replayed else 0.0
    return BatchPlan(tuple(windows[:steps]), share)


def _drawn(examples: Iterable[Example], tokens: Mapping[str, int], random: np.random.Generator) -> list[Example]:
    """So many tokens of each source: all of its examples once, or drawn."""
    by_source: dict[str, list[Example]] = {source: [] for source in sorted(tokens)}
    for example in examples:
        by_source[example.source].append(example)
    return [one for source, own in by_source.items() for one in _draw(own, tokens[source], random)]


def _draw(examples: Iterable[Example], tokens: int, random: np.random.Generator) -> list[Example]:
    own = {example.record_id: example for example in examples}
    drawn = draw_from_pool({record_id: len(example.labels) for record_id, example in own.items()}, tokens, random)
    return [own[draw.record_id].shortened(draw.tokens) for draw in drawn]


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
