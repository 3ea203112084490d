"""The token report: what a training learned from, and which kinds of tokens the draft still misses. No model, no mlx.

Positions are summed by kind, and every rate is a ratio of these sums. The acceptance of a position is w, the
probability that its emitted token y would have been accepted: given only that the target emitted y, w is an unbiased
sample of the acceptance `a`, for E over y~p of min(1, q(y)/p(y)) is Σ min(p, q). So log p(y) of the record and log q(y)
of the draft are all that is needed, and the target is not (`token_acceptance` computes them).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.records import Record, Split
from .dataset.examples import Example

MOST_KINDS = 6
OTHER = "other"
ExampleRecord = tuple[Example, Record]
"""An example and the record it was made of."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Supervised positions of some generations, and those of them at which a draft token was rejected."""

    generations: int
    positions: int
    rejected: int


@dataclass(frozen=True, slots=True)
class TokenKindRow:
    """How the draft does on one kind of token.

    Attributes:
        kind: its name, or `other` for all that have no row of their own.
        positions: of this kind; `share` of all positions.
        rejected: positions at which a draft token was rejected when the generations were collected.
        acceptance_before: mean of w at the start of the training; None where that is not known any more.
        acceptance_after: the same of the weights kept.
        remaining: this kind's part of all that is still rejected, Σ (1 − w); None where nothing is.
    """

    kind: str
    positions: int
    share: float
    rejected: int
    acceptance_before: float | None
    acceptance_after: float
    remaining: float | None


@dataclass(frozen=True, slots=True)
class TokenReport:
    """The table of a training.

    Attributes:
        learned_from: the failures that were trained on.
        measured_on: the generations that `kinds` is about, not more than a bounded number.
        split: of those: `validation`, or `train`, failures that were trained on, where there is no validation.
        kinds: the kind with the most still rejected comes first, `other` last.
    """

    learned_from: Counts
    measured_on: Counts
    split: Split
    kinds: tuple[TokenKindRow, ...]


def rejected_positions(generation: ExampleRecord) -> NDArray[np.float64]:
    """(n,) 1 at the supervised positions where a draft token was rejected, by the record; 0 elsewhere."""
    example, record = generation
    flags = np.zeros(len(record.target_output))
    flags[[disagreement.position for disagreement in record.disagreements]] = 1.0
    return flags[: len(example.labels)]


def count(generations: Sequence[ExampleRecord]) -> Counts:
    """Their counts."""
    return Counts(
        generations=len(generations),
        positions=sum(len(example.labels) for example, _ in generations),
        rejected=int(sum(rejected_positions(generation).sum() for generation in generations)),
    )


def sum_by_kind(kinds: Iterable[str], values: Iterable[float]) -> dict[str, float]:
    """The sum of `values` over the positions of each kind."""
    sums: dict[str, float] = defaultdict(float)
    for kind, value in zip(kinds, values, strict=True):
        sums[kind] += float(value)
    return dict(sums)


def rows_by_kind(
    kinds: Sequence[str],
    rejected: NDArray[np.float64],
    before: Mapping[str, float] | None,
    after: NDArray[np.float64],
    most: int = MOST_KINDS,
) -> tuple[TokenKindRow, ...]:
    """The rows of the table.

    Args:
        kinds: N ≥ 1 of them, one a position.
        rejected: (N,) 1 where a draft token was rejected, 0 elsewhere.
        before: `sum_by_kind` of the acceptance at the start; None where it is not known.
        after: (N,) float64 in [0, 1], the acceptance now.
        most: rows; the others become one more, unless that would be a single kind.
    """
    # 1. The row of every kind: what is rejected most comes first, ties by name.
    still_rejected = sum_by_kind(kinds, 1.0 - after)
    ranked = sorted(still_rejected, key=lambda kind: (-still_rejected[kind], kind))
    shown = len(ranked) if len(ranked) <= most + 1 else most
    row_of = {kind: kind if place < shown else OTHER for place, kind in enumerate(ranked)}
    # 2. Sums over the positions of each row.
    names = [row_of[kind] for kind in kinds]
    positions, rejections = sum_by_kind(names, np.ones(len(kinds))), sum_by_kind(names, rejected)
    accepted = sum_by_kind(names, after)
    at_start = None if before is None else sum_by_kind((row_of[kind] for kind in before), before.values())
    # 3. Their ratios.
    missing = len(kinds) - sum(accepted.values())
    return tuple(
        TokenKindRow(
            kind=name,
            positions=int(positions[name]),
            share=positions[name] / len(kinds),
            rejected=int(rejections[name]),
            acceptance_before=None if at_start is None else at_start[name] / positions[name],
            acceptance_after=accepted[name] / positions[name],
            remaining=(positions[name] - accepted[name]) / missing if missing > 0 else None,
        )
        for name in dict.fromkeys(row_of.values())
    )
