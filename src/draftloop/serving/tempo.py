"""Whether several outputs are decoded faster in turn, each with its draft, or as one plain batch: by what both gave.

Tokens and seconds of each way are kept as exponential averages, of batches for each number of outputs. A way that was
not measured yet is tried, and the one that lost is tried again now and then, because prompts and lengths change: a
trial of TRIAL steps after REST others costs at most TRIAL / REST of the time, times the ratio of the speeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Way = Literal["turns", "batch"]

MEMORY = 64  # steps
TRIAL = 6  # steps
REST = 300  # steps until a way that lost is tried again
MARGIN = 1.03  # by which the other way must be faster: a change of ways copies caches


@dataclass
class _Measured:
    tokens: float = 0.0
    seconds: float = 0.0
    steps: float = 0.0
    since: int = 0  # steps of the other way since the last trial

    def add(self, tokens: int, seconds: float) -> None:
        keep = 1 - 1 / MEMORY
        self.tokens = keep * self.tokens + tokens
        self.seconds = keep * self.seconds + seconds
        self.steps = keep * self.steps + 1
        self.since = 0

    def forget(self) -> None:
        self.tokens = self.seconds = self.steps = 0.0
        self.since = 0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


class Tempo:
    """What both ways gave so far."""

    def __init__(self) -> None:
        self._measured: dict[tuple[Way, int], _Measured] = {}
        self._trial: tuple[Way, int, int] | None = None  # way, outputs, steps that are left of it
        self._used: dict[int, Way] = {}

    def choose(self, count: int) -> Way:
        """How to make the next step of so many outputs, two or more."""
        if self._trial is not None and self._trial[1] == count and self._trial[2] > 0:
            return self._trial[0]
        ways: tuple[Way, Way] = ("turns", "batch")
        for way in ways:
            measured = self._of(way, count)
            if measured.steps < TRIAL / 2 or measured.since >= REST:
                self._trial = (way, count, TRIAL)
                measured.forget()  # what it gave so long ago would outweigh the trial
                return way
        used = self._used.get(count, "turns")
        other: Way = "batch" if used == "turns" else "turns"
        if self._of(other, count).rate > MARGIN * self._of(used, count).rate:
            used = other
        self._used[count] = used
        return used

    def note(self, way: Way, count: int, tokens: int, seconds: float) -> None:
        """A step of `way` gave so many tokens, of all of the `count` outputs together where it is a batch."""
        self._of(way, count).add(tokens, seconds)
        self._of("batch" if way == "turns" else "turns", count).since += 1
        if self._trial is not None and self._trial[:2] == (way, count):
            self._trial = (way, count, self._trial[2] - 1)

    def _of(self, way: Way, count: int) -> _Measured:
        """Turns are as fast whatever their number."""
        return self._measured.setdefault((way, 0 if way == "turns" else count), _Measured())
