"""How micro-batches, and outputs too long, are cut to fit into memory: by estimate, smaller when out of memory. No mlx.

A forward and a backward pass over `rows` examples of `length` tokens takes, but for a constant, rows times
a·length + b·length²: activations, and the attention's scores where a backend keeps them. The head adds its share for
each position whose logits exist at a time. All of it is measured on the draft itself, in a few passes over one row;
once with the logits of all positions at once and once a piece at a time, for then a pass keeps more of the body. The
optimizer step stays what it is: the gradient sums of the parts are added, and divided once.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..dataset.examples import POSITION_STEP, Example, padded_shape, round_up

SAFETY = 0.85  # of the room that there is: estimates were within a tenth of what was measured
_SHORTEST = 32  # row that is measured
_ALL = 1 << 30
_POINTS = 3  # that a curve is laid through
_NEVER = 1e18  # bytes; infinity would not survive JSON
_SHORTER = 0.9  # of an example that was too much by itself

Part = tuple[Example, ...]
ProbePass = Callable[[int, int, int], int | None]
"""Length of one row, labels, positions whose logits exist at a time -> bytes, or None: out of memory."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Bytes of a pass: a constant; of a row, times its padded length and the square of it; of a position of logits."""

    fixed: float = 0.0
    per_token: float = 1.0
    per_square: float = 0.0
    per_position: float = 0.0

    def at(self, rows: int, length: int, positions: int) -> float:
        """For rows of one length; `positions` are those whose logits exist at a time, the first few free."""
        body = rows * (self.per_token * length + self.per_square * length**2)
        return self.fixed + body + self.per_position * max(0, positions - POSITION_STEP)


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes of a forward and a backward pass. By default one for every padded token: good for halving, for no estimate.

    Attributes:
        whole, cut: with the logits of all positions at once, and with those of `piece` of them where there are more.
        piece: positions whose logits exist at a time; 0 is all of them.
        per_label: of every supervised position, however many exist at a time.
    """

    whole: Curve = Curve()
    cut: Curve = Curve()
    piece: int = 0
    per_label: float = 0.0

    def of(self, examples: Sequence[Example]) -> float:
        """Bytes of one part, at least one example."""
        length, labels = padded_shape(examples)
        if self.piece and labels > self.piece:
            return self.cut.at(len(examples), length, self.piece) + self.per_label * labels
        return self.whole.at(len(examples), length, labels) + self.per_label * labels


@dataclass(frozen=True, slots=True)
class Fit:
    """How micro-batches are worked on. Checkpoints hold its fields by name.

    Attributes:
        cost: of a part.
        room: the most that a part of several examples may cost; None is no bound.
        most: the most that an example alone may cost, or its output is cut from the end.
        recompute: whether activations are computed again in the backward pass, and not kept.
    """

    cost: Cost = Cost()
    room: float | None = None
    most: float | None = None
    recompute: bool = False

    def changes(self, batches: Iterable[Sequence[Example]]) -> bool:
        """Whether these micro-batches are worked on otherwise than without regard to memory."""
        return self.recompute or not all(self.takes(batch) for batch in batches)

    def takes(self, examples: Sequence[Example]) -> bool:
        """Whether a part fits."""
        bound = self.room if len(examples) > 1 else self.most
        return bound is None or self.cost.of(examples) <= bound

    def fitted(self, example: Example) -> Example | None:
        """The example with as many of its labels as fit alone; None where not one does."""
        if self.takes([example]):
            return example
        counts = range(1, len(example.labels) + 1)
        fits = bisect_left(counts, True, key=lambda labels: not self.takes([example.shortened(labels)]))
        return example.shortened(fits) if fits else None

    def parts(self, examples: Sequence[Example]) -> tuple[list[Part], Part]:
        """The parts of a micro-batch in its order, each as large as fits; and the examples of which no label fits."""
        fitted = [(example, self.fitted(example)) for example in examples]
        too_long = tuple(example for example, cut in fitted if cut is None)
        return self.pieces([cut for _, cut in fitted if cut is not None]), too_long

    def pieces(self, examples: Sequence[Example]) -> list[Part]:
        """The parts of a micro-batch with nothing cut or left out: what does not fit alone is a part alone."""
        parts: list[Part] = []
        for example in examples:
            if parts and self.takes([*parts[-1], example]):
                parts[-1] = (*parts[-1], example)
            else:
                parts.append((example,))
        return parts

    def is_within(self, other: Fit, batches: Iterable[Sequence[Example]]) -> bool:
        """Whether what this makes of micro-batches fits by the other's cost and room too."""
        return all(other.takes(part) for batch in batches for part in self.parts(batch)[0])

    def is_smallest(self, batches: Iterable[Sequence[Example]]) -> bool:
        """Whether these micro-batches cannot be worked on in less memory without cutting an output."""
        return self.recompute and all(len(part) == 1 for batch in batches for part in self.pieces(batch))

    def fallback(self, batches: Iterable[Sequence[Example]], *, cut: bool = False) -> Fit | None:
        """What to try after these micro-batches took too much; None where nothing smaller is left.

        Args:
            batches: as they were given.
            cut: whether the ends of examples were left out where they did not fit.
        """
        # 1. Activations are computed again in the backward pass.
        if not self.recompute:
            return replace(self, recompute=True)
        parts = [part for batch in batches for part in (self.parts(batch)[0] if cut else self.pieces(batch))]
        if not parts:
            return None
        # 2. Parts are at most as large as half of the largest one was.
        largest = max(parts, key=lambda part: (len(part) > 1, self.cost.of(part)))
        below = math.nextafter(self.cost.of(largest), 0.0)
        middle = len(largest) // 2
        if middle:
            return replace(self, room=min(below, max(self.cost.of(largest[:middle]), self.cost.of(largest[middle:]))))
        # 3. Where every part is one example, there is room for what is shorter than the longest.
        longest = largest[0]
        tokens = max(longest.prompt_length, int(_SHORTER * len(longest.ids)))
        most = min(below, self.cost.of([replace(longest, ids=longest.ids[:tokens])]))
        return replace(self, most=most, room=most if self.room is None else min(self.room, most))

    def describe(self, batches: Iterable[Sequence[Example]]) -> str:
        """In words, without a number that only a measured cost gives; the outputs of `batches` are counted."""
        how = "activations are computed again in the backward pass" if self.recompute else "activations are kept"
        if self.room is self.most is None:
            return how
        examples = {example.record_id: example for batch in batches for example in batch}.values()
        cut = sum(not self.takes([example]) for example in examples)
        how += ", micro-batches are worked on in parts"
        return how + (f", the ends of {cut} of {len(examples)} outputs are left out" if cut else "")


def measure_cost(probe: ProbePass, longest: int, most_labels: int, room: float, piece: int, per_label: float) -> Cost:
    """The cost of a pass, from passes over one row of growing length.

    Args:
        probe: makes one.
        longest: inputs of the longest example.
        most_labels: supervised positions of the largest micro-batch; with `piece` or fewer nothing is ever cut.
        room: bytes; no length is tried that takes more by the ones before.
        piece: positions whose logits exist at a time.
        per_label: as in Cost.
    """
    # 1. The body: with the logits of all positions at once, and a piece at a time where a micro-batch is ever cut.
    whole = _body(lambda length: probe(length, min(length, POSITION_STEP), _ALL), _SHORTEST, longest, room)
    cut = whole
    if round_up(most_labels, POSITION_STEP) > piece:
        fewest = 2 * POSITION_STEP  # positions that are cut
        cut = _body(lambda length: probe(length, fewest, POSITION_STEP), fewest, longest, room)
    # 2. The head: what POSITION_STEP more positions of logits take.
    if piece > POSITION_STEP:
        length = 2 * POSITION_STEP
        whole = _with_head(whole, probe(length, length // 2, _ALL), probe(length, length, _ALL))
        length = 4 * POSITION_STEP
        cut = _with_head(cut, probe(length, length, POSITION_STEP), probe(length, length, 2 * POSITION_STEP))
    return Cost(whole, cut, piece, per_label)


def _body(probe: Callable[[int], int | None], length: int, longest: int, room: float) -> Curve:
    """The curve through passes of this length, its double, and so on up to the longest."""
    points: list[tuple[int, int]] = []
    while len(points) < _POINTS or points[-1][0] < longest:
        if len(points) > 1 and _curve(points).at(1, length, 0) > room:
            break
        taken = probe(length)
        if taken is None:
            break
        points.append((length, taken))
        length *= 2
    return _curve(points)


def _with_head(curve: Curve, few: int | None, many: int | None) -> Curve:
    if few is None or many is None:
        return curve
    return replace(curve, per_position=max(0, many - few) / POSITION_STEP)


def _curve(points: Sequence[tuple[int, int]]) -> Curve:
    """Constant, slope and square through the last points: none below 0, for measurements vary."""
    if not points:
        return Curve(per_token=_NEVER)  # not even the shortest row fits
    if len(points) == 1:
        return Curve(per_token=points[0][1] / points[0][0])
    lengths, sizes = zip(*points[-_POINTS:], strict=True)
    for degree in range(len(lengths) - 1, 0, -1):
        fixed, *others = (float(x) for x in np.polynomial.polynomial.polyfit(lengths, sizes, degree))
        if all(x >= 0 for x in others):
            return Curve(max(0.0, fixed), others[0], others[1] if degree > 1 else 0.0)
    return Curve(float(max(sizes)), 0.0)
