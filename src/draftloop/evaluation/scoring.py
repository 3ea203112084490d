"""The teacher-forced pass that feeds the estimator: log p(y), log q(y) and `a` at every position of given outputs.

Several drafts are scored on the same outputs against the same target distributions, so comparisons are paired to the
bit. The target reads each output once, however many drafts and draft lengths are asked for.

What flows, for a block of outputs with N tokens in all: tokens (B, L) -> target logits (B, L, V) -> p at the N output
positions (N, V) float32, kept for the block; then per draft tokens -> q (N, V) -> three scalars per position. A block
is as large as `BLOCK_BYTES` allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from ..config import Rule
from ..decoding.sampling_filters import sampling_log_probs
from ..decoding.teacher_forced import TargetGeneration, blocks, distributions
from ..models.pair import Pair
from ..models.short_head import shortened

BLOCK_BYTES = 512 << 20  # of target distributions held at once


@dataclass(frozen=True)
class OutputScores:
    """Of one output under one draft; all (N,) float64, -inf where there is no mass.

    `position` is the acceptance of each position from full distributions, in [0, 1].
    """

    log_p: NDArray[np.float64]
    log_q: NDArray[np.float64]
    position: NDArray[np.float64]


def score_carried(pair: Pair, generations: Sequence[TargetGeneration], rule: Rule) -> list[OutputScores]:
    """The scores of `generations` under the draft with whatever adapter it carries. Args as `score`."""
    return score(pair, generations, rule, {"": lambda: pair.draft})[""]


def score(
    pair: Pair,
    generations: Sequence[TargetGeneration],
    rule: Rule,
    drafts: Mapping[str, Path | Callable[[], nn.Module] | None],
    on_generation: Callable[[], None] = lambda: None,
) -> dict[str, list[OutputScores]]:
    """Score every output under every draft.

    Args:
        pair: the models; afterwards its draft carries the last of `drafts`.
        generations: outputs of the target, each under its own sampler.
        rule: what `position` means: `rejection` sums min(p, q), `match` p q, `greedy` compares the argmax.
        drafts: name to adapter directory, or to a function that gives the model once per block; None is the bare draft.
        on_generation: called after each output under each draft.

    Returns:
        For each name the scores of `generations`, in their order.
    """
    scores: dict[str, dict[int, OutputScores]] = {name: {} for name in drafts}
    for block in blocks(generations, pair.width, BLOCK_BYTES):
        log_p = dict(distributions(pair.target, generations, block, pair.width, sampling_log_probs))
        for name, i, log_q in _under_drafts(pair, generations, block, drafts):
            scores[name][i] = _scores(log_p[i], log_q, generations[i].output, rule)
            on_generation()
    return {name: [own[i] for i in range(len(generations))] for name, own in scores.items()}


def log_q_of(
    pair: Pair,
    generations: Sequence[TargetGeneration],
    drafts: Mapping[str, Path | Callable[[], nn.Module] | None],
    on_generation: Callable[[], None] = lambda: None,
) -> dict[str, list[NDArray[np.float64]]]:
    """log q of every output under every draft, without the target. Args as `score`.

    Returns:
        For each name the (N,) float64 of each of `generations`, in their order; -inf where there is no mass.
    """
    found: dict[str, dict[int, NDArray[np.float64]]] = {name: {} for name in drafts}
    for block in blocks(generations, pair.width, BLOCK_BYTES):
        for name, i, log_q in _under_drafts(pair, generations, block, drafts):
            found[name][i] = _column(log_q, generations[i].output)
            on_generation()
    return {name: [own[i] for i in range(len(generations))] for name, own in found.items()}


def _under_drafts(
    pair: Pair,
    generations: Sequence[TargetGeneration],
    block: Sequence[int],
    drafts: Mapping[str, Path | Callable[[], nn.Module] | None],
) -> Iterator[tuple[str, int, mx.array]]:
    """For every draft, and each generation of a block: the draft's name, the index, and log q (N, V)."""
    for name, draft in drafts.items():
        model = draft() if callable(draft) else pair.with_adapter(draft).draft
        with shortened(model, pair.vocabulary):
            for i, log_q in distributions(model, generations, block, pair.width, sampling_log_probs):
                yield name, i, log_q


def _scores(log_p: mx.array, log_q: mx.array, output: tuple[int, ...], rule: Rule) -> OutputScores:
    p, q = mx.exp(log_p), mx.exp(log_q)
    position = mx.sum(p * q if rule == "match" else mx.minimum(p, q), axis=-1)
    return OutputScores(_column(log_p, output), _column(log_q, output), np.array(position, dtype=np.float64))


def _column(rows: mx.array, output: tuple[int, ...]) -> NDArray[np.float64]:
    """What (N, V) rows say of the N tokens of an output."""
    return np.array(mx.take_along_axis(rows, mx.array(output)[:, None], axis=-1).squeeze(-1), dtype=np.float64)
