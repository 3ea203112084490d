"""How a micro-batch is cut so that each part fits into memory: by estimate, and smaller after a want of it. No mlx.

What a forward and a backward pass over `rows` examples of `length` tokens take is, but for a constant, rows times
a·length + b·length²: activations, and the attention's scores where a backend keeps them. The head adds so much for each
position whose logits are there at a time. All of it is measured on the draft itself, in a few passes over one row; once
with the logits of all positions at once and once a piece at a time, for then a pass keeps more of the body.
The optimizer step stays what it is: the gradient sums of the parts are added, and divided once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .examples import Example

SAFETY = 0.85  # of the room that there is: estimates were within a tenth of what was measured
LEAST_LENGTH = 32
FEW_LABELS = 64  # supervised positions come in multiples of it
_ALL = 1 << 30
_POINTS = 3  # that a curve is laid through
_FEWER = 0.9  # of an example that was too much by itself

Batch = tuple[Example, ...]
Probe = Callable[[int, int, int], int | None]
"""Length of one row, labels, positions whose logits are there at a time -> bytes, or None: memory was refused."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Bytes of a pass: a constant; of a row, times its padded length and the square of it; of a position of logits."""

    fixed: float = 0.0
    per_token: float = 1.0
    per_square: float = 0.0
    per_position: float = 0.0

    def at(self, rows: int, length: int, positions: int) -> float:
        """For so many rows of one length; `positions` are those beyond FEW_LABELS whose logits are there at a time."""
        body = rows * (self.per_token * length + self.per_square * length**2)
        return self.fixed + body + self.per_position * max(0, positions - FEW_LABELS)


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes of a forward and a backward pass. By default one for every padded token: good for halving, for no estimate.

    Attributes:
        whole, cut: with the logits of all positions at once, and with those of `piece` of them where there are more.
        piece: positions whose logits are there at a time; 0 is all of them.
        per_label: of every supervised position, whatever is there at a time.
    """

    whole: Curve = Curve()
    cut: Curve = Curve()
    piece: int = 0
    per_label: float = 0.0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Cost:
        """The cost that `asdict` made an object of."""
        return cls(**{**values, "whole": Curve(**values["whole"]), "cut": Curve(**values["cut"])})

    def of(self, batch: Sequence[Example]) -> float:
        """Bytes of one part, at least one example."""
        length = padded(max(len(example.inputs) for example in batch), LEAST_LENGTH)
        labels = padded(sum(len(example.labels) for example in batch), FEW_LABELS)
        if self.piece and labels > self.piece:
            return self.cut.at(len(batch), length, self.piece) + self.per_label * labels
        return self.whole.at(len(batch), length, labels) + self.per_label * labels


@dataclass(frozen=True, slots=True)
class Fit:
    """How micro-batches are worked on.

    Attributes:
        cost: of a part.
        room: the most that a part of several examples may cost; None is no bound.
        most: the most that an example alone may cost, or it is left out.
        recompute: whether activations are computed again in the backward pass, and not kept.
    """

    cost: Cost = Cost()
    room: float | None = None
    most: float | None = None
    recompute: bool = False

    @classmethod
    def from_json(cls, values: dict[str, Any] | None) -> Fit | None:
        """The fit that `asdict` made an object of, or none."""
        return None if values is None else cls(**{**values, "cost": Cost.from_json(values["cost"])})

    def changes(self, batches: Iterable[Sequence[Example]]) -> bool:
        """Whether these micro-batches are worked on otherwise than without regard to memory."""
        return self.recompute or not all(self.takes(batch) for batch in batches)

    def takes(self, batch: Sequence[Example]) -> bool:
        """Whether a part fits."""
        bound = self.room if len(batch) > 1 else self.most
        return bound is None or self.cost.of(batch) <= bound

    def parts(self, examples: Sequence[Example]) -> tuple[list[Batch], Batch]:
        """The parts of a micro-batch in its order, each as large as fits; and the examples that alone do not."""
        found: list[Batch] = []
        for example in (one for one in examples if self.takes([one])):
            if found and self.takes([*found[-1], example]):
                found[-1] = (*found[-1], example)
            else:
                found.append((example,))
        return found, tuple(one for one in examples if not self.takes([one]))

    def pieces(self, examples: Sequence[Example]) -> list[Batch]:
        """The parts of a micro-batch with nothing left out: what alone does not fit is a part alone."""
        fitting, alone = self.parts(examples)
        return [*fitting, *((one,) for one in alone)]

    def is_smallest(self, batches: Iterable[Sequence[Example]]) -> bool:
        """Whether these micro-batches cannot be worked on in less memory without leaving something out."""
        return self.recompute and all(len(part) == 1 for batch in batches for part in self.pieces(batch))

    def stepped_down(self, batches: Iterable[Sequence[Example]]) -> Fit:
        """What to try after these micro-batches took too much.

        Activations are computed again first; then parts are at most as large as half of the largest one was. Where all
        have one example, there is room for what is shorter than the longest.
        """
        if not self.recompute:
            return replace(self, recompute=True)
        parts = [part for batch in batches for part in self.pieces(batch)]
        largest = max(parts, key=lambda part: (len(part) > 1, self.cost.of(part)))
        below = math.nextafter(self.cost.of(largest), 0.0)
        middle = len(largest) // 2
        if middle:
            return replace(self, room=min(below, max(self.cost.of(largest[:middle]), self.cost.of(largest[middle:]))))
        return replace(self, most=min(below, self.cost.of([_shorter(largest[0])])))

    def __str__(self) -> str:
        """In words, without a number that only a measured cost gives."""
        how = "activations are computed again in the backward pass" if self.recompute else "activations are kept"
        return how if self.room is self.most is None else f"{how}, micro-batches are worked on in parts"


def _shorter(example: Example) -> Example:
    return replace(example, ids=example.ids[: max(example.prompt_length, int(_FEWER * len(example.ids)))])


def padded(count: int, step: int) -> int:
    """The size that a batch takes for so many, as the estimate has it."""
    return -(-count // step) * step


def measured(probe: Probe, longest: int, most_labels: int, room: float, piece: int, per_label: float) -> Cost:
    """The cost of a pass, from passes over one row of growing length.

    Args:
        probe: makes one.
        longest: inputs of the longest example.
        most_labels: supervised positions of the largest micro-batch; with `piece` or fewer nothing is ever cut.
        room: no length is tried of which those before say that it would take more.
        piece: positions whose logits are there at a time.
        per_label: as in Cost.
    """
    whole = _body(lambda length: probe(length, min(length, FEW_LABELS), _ALL), LEAST_LENGTH, longest, room)
    cut = whole
    if padded(most_labels, FEW_LABELS) > piece:
        few = 2 * FEW_LABELS  # the fewest that are cut
        cut = _body(lambda length: probe(length, few, FEW_LABELS), few, longest, room)
    if piece > FEW_LABELS:
        length = 2 * FEW_LABELS
        whole = _with_head(whole, probe(length, length // 2, _ALL), probe(length, length, _ALL))
        length = 4 * FEW_LABELS
        cut = _with_head(cut, probe(length, length, FEW_LABELS), probe(length, length, 2 * FEW_LABELS))
    return Cost(whole, cut, piece, per_label)


def _body(probe: Callable[[int], int | None], length: int, longest: int, room: float) -> Curve:
    """The curve through passes of this length, its double, and so on up to the longest."""
    points: list[tuple[int, int]] = []
    while len(points) < _POINTS or points[-1][0] < longest:
        if len(points) > 1 and _curve(points).at(1, length, 0) > room:
            break
        found = probe(length)
        if found is None:
            break
        points.append((length, found))
        length *= 2
    return _curve(points)


def _with_head(curve: Curve, few: int | None, many: int | None) -> Curve:
    """With what FEW_LABELS more positions of logits take."""
    if few is None or many is None:
        return curve
    return replace(curve, per_position=max(0, many - few) / FEW_LABELS)


def _curve(points: Sequence[tuple[int, int]]) -> Curve:
    """Constant, slope and square through the last points: neither below 0, for what is measured trembles."""
    if not points:
        return Curve(per_token=math.inf)  # not even the shortest row fits
    if len(points) == 1:
        return Curve(per_token=points[0][1] / points[0][0])
    lengths, sizes = zip(*points[-_POINTS:], strict=True)
    for degree in range(len(lengths) - 1, 0, -1):
        fixed, *others = (float(x) for x in np.polynomial.polynomial.polyfit(lengths, sizes, degree))
        if all(x >= 0 for x in others):
            return Curve(max(0.0, fixed), others[0], others[1] if degree > 1 else 0.0)
    return Curve(float(max(sizes)), 0.0)
