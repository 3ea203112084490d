"""What a training learned from, and which kinds of tokens the draft still misses most. Knows no model and no mlx.

Positions are tallied by kind, and every rate is a ratio of the tallies. The acceptance of a position is w, the
probability that its emitted token y would have been accepted: given only that the target emitted y, w is an unbiased
sample of the acceptance `a`, for E over y~p of min(1, q(y)/p(y)) is Σ min(p, q). So log p(y) of the record and log q(y)
of the draft are all that is needed, and the target is not.
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
Studied = tuple[Example, Record]
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
        remaining: this kind's part of all that is still refused, Σ (1 − w); None where nothing is.
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
        measured_on: the generations that `kinds` speaks of, not more than a bounded number.
        split: of those: `validation`, or `train`, failures that were trained on, where nothing could be held out.
        kinds: what is missed most comes first, `other` last.
    """

    learned_from: Counts
    measured_on: Counts
    split: Split
    kinds: tuple[TokenKindRow, ...]


def study(examples: Iterable[Example], records: Iterable[Record]) -> list[Studied]:
    """Every example with its record."""
    by_id = {record.id: record for record in records}
    return [(example, by_id[example.record_id]) for example in examples]


def rejected(studied: Studied) -> NDArray[np.float64]:
    """(n,) 1 at the supervised positions where a draft token was rejected, by the record; 0 elsewhere."""
    example, record = studied
    flags = np.zeros(len(record.target_output))
    flags[[found.position for found in record.disagreements]] = 1.0
    return flags[: len(example.labels)]


def count(generations: Sequence[Studied]) -> Counts:
    """Their counts."""
    return Counts(
        generations=len(generations),
        positions=sum(len(example.labels) for example, _ in generations),
        rejected=int(sum(rejected(one).sum() for one in generations)),
    )


def tally(kinds: Sequence[str], values: NDArray[np.float64]) -> dict[str, float]:
    """The sum of `values`, (N,), over the positions of each kind."""
    sums: dict[str, float] = defaultdict(float)
    for kind, value in zip(kinds, values.tolist(), strict=True):
        sums[kind] += value
    return dict(sums)


def by_kind(
    kinds: Sequence[str],
    rejections: NDArray[np.float64],
    before: Mapping[str, float] | None,
    after: NDArray[np.float64],
    most: int = MOST_KINDS,
) -> tuple[TokenKindRow, ...]:
    """The rows of the table.

    Args:
        kinds: N ≥ 1 of them, one a position.
        rejections: (N,) 1 where a draft token was rejected, 0 elsewhere.
        before: `tally` of the acceptance at the start; None where it is not known.
        after: (N,) float64 in [0, 1], the acceptance now.
        most: rows; the others become one more, unless that would be a single kind.
    """
    names = _names(tally(kinds, 1.0 - after), most)
    merged = [names[kind] for kind in kinds]
    sums = _Sums(
        positions=tally(merged, np.ones(len(kinds))),
        rejected=tally(merged, rejections),
        before=None if before is None else _merged(before, names),
        after=tally(merged, after),
    )
    return tuple(sums.row(kind) for kind in dict.fromkeys(names.values()))


@dataclass(frozen=True, slots=True)
class _Sums:
    """Over the positions of each row's kind; `before` and `after` sum the acceptance."""

    positions: dict[str, float]
    rejected: dict[str, float]
    before: dict[str, float] | None
    after: dict[str, float]

    def row(self, kind: str) -> TokenKindRow:
        """The row of a kind."""
        number, total = self.positions[kind], sum(self.positions.values())
        refused = total - sum(self.after.values())
        return TokenKindRow(
            kind=kind,
            positions=int(number),
            share=number / total,
            rejected=int(self.rejected[kind]),
            acceptance_before=None if self.before is None else self.before[kind] / number,
            acceptance_after=self.after[kind] / number,
            remaining=(number - self.after[kind]) / refused if refused > 0 else None,
        )


def _names(refused: Mapping[str, float], most: int) -> dict[str, str]:
    """The row of every kind, in the order of the rows."""
    ranked = sorted(refused, key=lambda kind: (-refused[kind], kind))
    shown = len(ranked) if len(ranked) <= most + 1 else most
    return {kind: kind if place < shown else OTHER for place, kind in enumerate(ranked)}


def _merged(sums: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    merged: dict[str, float] = defaultdict(float)
    for kind, value in sums.items():
        merged[names[kind]] += value
    return dict(merged)
