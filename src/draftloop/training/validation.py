"""How well the adapter does on the split `validation`: loss and acceptance per position. It chooses the weights kept.

Better means a higher acceptance per position, the mean of Σ min(p, q), which is what speculative decoding gains from. A
loss may fall while acceptance does not; it only breaks ties. A micro-batch is of one source, so that both come by
source.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from .dataset.examples import Example
from .losses import Sums


@dataclass(frozen=True, slots=True)
class ValidationScores:
    """Means over the supervised tokens of the validation examples, and the acceptance per position of each source."""

    loss: float
    acceptance: float
    tokens: int
    by_source: dict[str, float]

    @property
    def are_finite(self) -> bool:
        """Whether both are numbers; if not, the weights are of no use."""
        return math.isfinite(self.loss) and math.isfinite(self.acceptance)

    def better_than(self, other: ValidationScores | None) -> bool:
        """Whether to keep these weights rather than the other's: never where these are not finite."""
        if not self.are_finite:
            return False
        return other is None or (self.acceptance, -self.loss) > (other.acceptance, -other.loss)


def validation_batches(examples: Iterable[Example], size: int, most: int) -> list[tuple[Example, ...]]:
    """Micro-batches of one source and of similar length each, the sources taking turns.

    Args:
        examples: of the split `validation`.
        size: of a micro-batch.
        most: how many micro-batches, of all sources and lengths; -1 is all.
    """
    by_source: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda example: (len(example.ids), example.record_id)):
        by_source[example.source].append(example)
    rows = [
        [tuple(by_source[source][i : i + size]) for i in range(0, len(by_source[source]), size)]
        for source in sorted(by_source)
    ]
    if most >= 0:
        rows = [[row[i] for i in _spread(len(row))] for row in rows]
    taking_turns = [batch for turn in zip_longest(*rows) for batch in turn if batch is not None]
    return taking_turns if most < 0 else taking_turns[:most]


def spread_over(batches: Sequence[tuple[Example, ...]], most: int) -> list[tuple[Example, ...]]:
    """At most `most` of the batches, from all over their order."""
    return [batches[i] for i in _spread(len(batches))[:most]]


def validate(
    batches: Sequence[tuple[Example, ...]], evaluate: Callable[[tuple[Example, ...]], Sums]
) -> ValidationScores:
    """The scores of micro-batches, at least one, each of one source."""
    total, tokens = 0.0, 0.0
    accepted: dict[str, float] = defaultdict(float)
    counted: dict[str, float] = defaultdict(float)
    for batch in batches:
        sums = evaluate(batch)
        total, tokens = total + float(sums.loss), tokens + float(sums.tokens)
        accepted[batch[0].source] += float(sums.acceptance)
        counted[batch[0].source] += float(sums.tokens)
    return ValidationScores(
        loss=total / tokens,
        acceptance=sum(accepted.values()) / tokens,
        tokens=int(tokens),
        by_source={source: accepted[source] / counted[source] for source in sorted(accepted)},
    )


def _spread(count: int) -> list[int]:
    """0 … count − 1 in an order of which every beginning lies all over the range (van der Corput's)."""
    bits = max(1, (count - 1).bit_length())
    return [i for i in (int(f"{n:0{bits}b}"[::-1], 2) for n in range(1 << bits)) if i < count]
