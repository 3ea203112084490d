"""Clocks for a training that go on when they are told, so that no test depends on how fast a machine is."""

from __future__ import annotations

from draftloop.training.working_time import WorkingTime


class Driven(WorkingTime):
    """A clock that stands still but for what is taken."""

    def __init__(self) -> None:
        super().__init__(self.look, lambda: self.computed)
        self.seconds = self.computed = 0.0

    def look(self) -> float:
        """Seconds so far."""
        return self.seconds

    def __enter__(self) -> WorkingTime:
        self.beat()
        return self

    def take(self, seconds: float, *, computing: bool = True) -> None:
        """So many seconds go by, in work or in a pause."""
        self.seconds += seconds
        self.computed += seconds if computing else 0.0


class Ticking(Driven):
    """A clock that goes on by a second with every look at it, and beats whenever it is looked at."""

    def look(self) -> float:
        """A second more than the last time."""
        self.seconds += 1.0
        return self.seconds
