"""A backlog: what waits to be worked on, between two threads, bounded in number and in weight. Never makes one wait."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Backlog(Generic[T]):
    """First in, first out.

    Args:
        most: things.
        most_weight: of all of them; one that weighs more by itself still goes in where there is nothing else.
    """

    def __init__(self, most: int, most_weight: int) -> None:
        self._most, self._most_weight = most, most_weight
        self._things: deque[tuple[T, int]] = deque()
        self._weight = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._things)

    def offer(self, thing: T, weight: int) -> bool:
        """Put a thing in; False where it does not fit, or the backlog is closed."""
        with self._changed:
            fits = not self._things or (len(self._things) < self._most and self._weight + weight <= self._most_weight)
            if self._closed or not fits:
                return False
            self._things.append((thing, weight))
            self._weight += weight
            self._changed.notify()
            return True

    def take(self, most: int) -> list[T]:
        """Up to so many things, at once where there are any."""
        with self._changed:
            return self._taken(most)

    def wait(self, most: int) -> list[T]:
        """Up to so many things, as soon as there is one; nothing only where the backlog is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._things or self._closed)
            return self._taken(most)

    def close(self) -> None:
        """Let nothing more in."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _taken(self, most: int) -> list[T]:
        found = [self._things.popleft() for _ in range(min(most, len(self._things)))]
        self._weight -= sum(weight for _, weight in found)
        return [thing for thing, _ in found]
