"""The teacher-forced pass: one pass of a model over finished outputs gives its distribution at every position.

Causal attention makes padding on the right invisible, so no pad token is needed. Memory is bounded twice: blocks bound
what a caller holds at once, batches what one forward pass makes; an output that is too long for either is read alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from ..caches import read_whole
from ..data.records import Record, Sampler

BATCH_BYTES = 128 << 20  # of logits in one forward pass
PART = 512  # tokens of a long prompt in one forward pass

Transform = Callable[[mx.array, Sampler, int], mx.array]  # logits (N, V), sampler, width -> (N, width)


@dataclass(frozen=True)
class TargetGeneration:
    """A prompt, the target's output, and the sampler of that output."""

    prompt_tokens: tuple[int, ...]
    output: tuple[int, ...]
    sampler: Sampler

    @classmethod
    def of(cls, record: Record) -> TargetGeneration:
        """The generation of a record."""
        return cls(record.prompt_tokens, record.target_output, record.sampler)

    @property
    def input_tokens(self) -> tuple[int, ...]:
        """What a model reads to predict every output token: all but the last."""
        return self.prompt_tokens + self.output[:-1]


def blocks(generations: Sequence[TargetGeneration], width: int, most_bytes: int) -> Iterator[list[int]]:
    """Indices of generations, shortest first so that neighbours pad little, in blocks of bounded memory.

    Args:
        generations: in any order.
        width: of a distribution.
        most_bytes: of float32 distributions over a block's outputs; one output alone may have more.
    """
    order = sorted(range(len(generations)), key=lambda i: (len(generations[i].input_tokens), i))
    yield from _grouped(
        order, lambda members: 4 * width * sum(len(generations[i].output) for i in members) <= most_bytes
    )


def distributions(
    model: Any,
    generations: Sequence[TargetGeneration],
    block: Sequence[int],
    width: int,
    transform: Transform,
    on_part: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, mx.array]]:
    """The distributions of a model at the output positions.

    Args:
        model: target or draft.
        generations: all of them.
        block: indices of those to read.
        width: tokens that target and draft share.
        transform: makes a distribution of logits.
        on_part: called after each part of a long prompt; what it raises ends the reading.

    Yields:
        The index and the distributions (N, width) of each generation of the block, evaluated.
    """

    def fits(members: list[int]) -> bool:
        return 4 * width * len(members) * max(len(generations[i].input_tokens) for i in members) <= BATCH_BYTES

    for batch in _grouped(block, fits):
        if not fits(batch):
            yield batch[0], _alone(model, generations[batch[0]], width, transform, on_part)
            continue
        length = max(len(generations[i].input_tokens) for i in batch)
        tokens = np.zeros((len(batch), length), np.int32)
        for row, i in enumerate(batch):
            tokens[row, : len(generations[i].input_tokens)] = generations[i].input_tokens
        logits = read_whole(model, mx.array(tokens))
        rows = []
        for row, i in enumerate(batch):
            start = len(generations[i].prompt_tokens) - 1
            rows.append(transform(logits[row, start : len(generations[i].input_tokens)], generations[i].sampler, width))
        mx.eval(rows)
        yield from zip(batch, rows, strict=True)


def _alone(
    model: Any, generation: TargetGeneration, width: int, transform: Transform, on_part: Callable[[], None]
) -> mx.array:
    """One long generation by itself; of its prompt's logits only the last ones are computed."""
    read = len(generation.prompt_tokens) - 1
    cache = make_prompt_cache(model)
    for start in range(0, read, PART):
        model(mx.array([generation.input_tokens[start : min(start + PART, read)]]), cache=cache)
        mx.eval([layer.state for layer in cache])  # so the logits are never computed
        on_part()
    rows = transform(model(mx.array([generation.input_tokens[read:]]), cache=cache)[0], generation.sampler, width)
    mx.eval(rows)
    return rows


def _grouped(items: Iterable[int], fits: Callable[[list[int]], bool]) -> Iterator[list[int]]:
    group: list[int] = []
    for item in items:
        if group and not fits([*group, item]):
            yield group
            group = []
        group.append(item)
    if group:
        yield group
