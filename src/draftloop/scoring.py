"""The teacher-forced pass that feeds the estimator: log p(y), log q(y) and `a` at every position of given outputs.

Several drafts are scored on the same outputs against the same target distributions, so comparisons are paired to the
bit. The target reads each output once, however many drafts and draft lengths are asked for.

What flows, for a block of outputs with N tokens in all: ids (B, L) -> target logits (B, L, V) -> p at the N output
positions (N, V) float32, kept for the block; then per draft ids -> q (N, V) -> three scalars a position. A block is as
large as `BLOCK_BYTES` allows. Causal attention makes padding on the right invisible, so no pad token is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from .pair import Pair
from .records import Record, Sampler
from .speculative.rules import Rule
from .speculative.transforms import sampling_log_probs

BLOCK_BYTES = 512 << 20  # of target distributions held at once
BATCH_BYTES = 128 << 20  # of logits in one forward pass


@dataclass(frozen=True)
class Text:
    """A prompt, what the target made of it, and the sampler it did so under."""

    prompt_tokens: tuple[int, ...]
    output: tuple[int, ...]
    sampler: Sampler

    @classmethod
    def of(cls, record: Record) -> Text:
        """The text of a record."""
        return cls(record.prompt_tokens, record.target_output, record.sampler)

    @property
    def ids(self) -> tuple[int, ...]:
        """What a model reads to predict every output token: all but the last."""
        return self.prompt_tokens + self.output[:-1]


@dataclass(frozen=True)
class Scores:
    """Of one text under one draft; all (N,) float64, -inf where there is no mass.

    `position` is the acceptance of each position from full distributions, in [0, 1].
    """

    log_p: NDArray[np.float64]
    log_q: NDArray[np.float64]
    position: NDArray[np.float64]


def score_carried(pair: Pair, texts: Sequence[Text], rule: Rule) -> list[Scores]:
    """The scores of `texts` under the draft with whatever adapter it carries. Args as `score`."""
    return _score(pair, texts, rule, {"": lambda: pair.draft})[""]


def score(pair: Pair, texts: Sequence[Text], rule: Rule, drafts: Mapping[str, Path | None]) -> dict[str, list[Scores]]:
    """Score every text under every draft.

    Args:
        pair: the models; afterwards its draft carries the last of `drafts`.
        texts: outputs of the target, each under its own sampler.
        rule: what `position` means: `rejection` sums min(p, q), `match` p q, `greedy` compares the argmax.
        drafts: name to adapter directory; None is the bare draft.

    Returns:
        For each name the scores of `texts`, in their order.
    """
    return _score(pair, texts, rule, {name: partial(_with_adapter, pair, path) for name, path in drafts.items()})


def _with_adapter(pair: Pair, path: Path | None) -> nn.Module:
    return pair.with_adapter(path).draft


def _score(
    pair: Pair, texts: Sequence[Text], rule: Rule, drafts: Mapping[str, Callable[[], nn.Module]]
) -> dict[str, list[Scores]]:
    """The scores of every text under what each of `drafts` gives, asked once a block."""
    found: dict[str, dict[int, Scores]] = {name: {} for name in drafts}
    for block in _blocks(texts, pair.width):
        log_p = dict(_log_probs(pair.target, texts, block, pair.width))
        for name, carried in drafts.items():
            for i, log_q in _log_probs(carried(), texts, block, pair.width):
                found[name][i] = _scores(log_p[i], log_q, texts[i].output, rule)
    return {name: [scores[i] for i in range(len(texts))] for name, scores in found.items()}


def _scores(log_p: mx.array, log_q: mx.array, output: tuple[int, ...], rule: Rule) -> Scores:
    chosen = mx.array(output)[:, None]
    p, q = mx.exp(log_p), mx.exp(log_q)
    position = mx.sum(p * q if rule == "match" else mx.minimum(p, q), axis=-1)
    columns = [mx.take_along_axis(rows, chosen, axis=-1).squeeze(-1) for rows in (log_p, log_q)]
    return Scores(*(np.array(column, dtype=np.float64) for column in (*columns, position)))


def _blocks(texts: Sequence[Text], width: int) -> Iterator[list[int]]:
    """Indices of texts, shortest first so that neighbours pad little, in blocks of bounded memory."""
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i].ids), i))
    yield from _grouped(order, lambda members: 4 * width * sum(len(texts[i].output) for i in members) <= BLOCK_BYTES)


def _log_probs(model: Any, texts: Sequence[Text], block: list[int], width: int) -> Iterator[tuple[int, mx.array]]:
    """(index, log-distribution (N, width) at the output positions) of each text of a block."""

    def fits(members: list[int]) -> bool:
        return 4 * width * len(members) * max(len(texts[i].ids) for i in members) <= BATCH_BYTES

    for batch in _grouped(block, fits):
        length = max(len(texts[i].ids) for i in batch)
        ids = np.zeros((len(batch), length), np.int32)
        for row, i in enumerate(batch):
            ids[row, : len(texts[i].ids)] = texts[i].ids
        logits = model(mx.array(ids))
        rows = []
        for row, i in enumerate(batch):
            start = len(texts[i].prompt_tokens) - 1
            rows.append(sampling_log_probs(logits[row, start : len(texts[i].ids)], texts[i].sampler, width))
        mx.eval(rows)
        yield from zip(batch, rows, strict=True)


def _grouped(items: Iterable[int], fits: Callable[[list[int]], bool]) -> Iterator[list[int]]:
    group: list[int] = []
    for item in items:
        if group and not fits([*group, item]):
            yield group
            group = []
        group.append(item)
    if group:
        yield group
