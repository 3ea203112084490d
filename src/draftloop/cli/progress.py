"""Progress on stderr: a live bar on a terminal, elsewhere a plain line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console

from ..runtime.bars import Bar, Frame, duration

_SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """`advance` it from 0 to `total`.

    Args:
        what: the work, in a word or two.
        total: its number of pieces; 0 if unknown: then no plain line is printed.
        begun: pieces that were done before.
        last_line: whether a plain line at the end says that all are done, however quick that was.
        console: shows the bar; stderr by default.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        what: str,
        total: int,
        begun: int = 0,
        last_line: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._done, self._detail = what, total, begun, ""
        self._share = self._before = begun / total if total else 0.0
        self._clock, self._began = clock, clock()
        self._paced_from = self._began  # the last moment at which nothing was known to be done
        self._said, self._says_last = self._began, last_line
        self._bar = Bar(what, console, clock)
        self._bar.show(Frame(what, begun, total or None, self._share))

    def __enter__(self) -> ProgressBar:
        self._bar.__enter__()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.__exit__()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self._clock() - self._began

    def advance(self, pieces: int, detail: str = "") -> None:
        """`pieces` more are done; `detail` is shown behind the bar."""
        self.set(self._done + pieces, detail)

    def set(self, done: int, detail: str = "", total: int | None = None) -> None:
        """`done` pieces are done in all, of `total` if that has changed."""
        if total is not None and total != self._total:
            self._total, self._share = total, 0.0
        self._done = done
        self.move(done / self._total if self._total else 1.0, detail)

    def move(self, share: float, detail: str = "") -> None:
        """`share` of the work is done, from 0 to 1: unfinished pieces count in part. The bar never goes back."""
        self._share, self._detail = max(self._share, min(1.0, share)), detail
        if self._share == self._before:
            self._paced_from = self._clock()  # what was done until now prepared all pieces, not the first one
        if not self._total:
            self._bar.note(detail)
            return
        if self._bar.is_live:
            self._bar.show(Frame(self._what, self._done, self._total, self._share, left=self._left(), detail=detail))
        elif self._done >= self._total:
            if self._says_last:
                self._says_last = False
                self._say()
        elif self._clock() - self._said >= _SECONDS_BETWEEN_LINES:
            self._say()

    def _left(self) -> float | None:
        """Estimated seconds left; None as long as nothing is done, and at the end."""
        done = self._share - self._before
        seconds = self._clock() - self._paced_from
        return seconds * (1 - self._share) / done if done > 0 and self._share < 1 else None

    def _say(self) -> None:
        self._said, left = self._clock(), self._left()
        said = [self._detail] if self._detail else []
        said = said if left is None else [f"{duration(left)} left", *said]
        print(f"{self._what} {self._done}/{self._total} {', '.join(said)}".rstrip(), file=sys.stderr, flush=True)


class Steps:
    """Several pieces of work one after the other, each with its own bar."""

    def __init__(self, *, last_line: bool = True) -> None:
        """Nothing is shown before the first step; `last_line` as in `ProgressBar`."""
        self._what, self._last_line = "", last_line
        self._current: ProgressBar | None = None

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._current is not None:
            self._current.__exit__()
            self._current = None

    def at(self, what: str, done: int, total: int) -> None:
        """`done` of `total` pieces of `what` are done."""
        if what != self._what:
            self.__exit__()
            self._what, self._current = what, ProgressBar(what, total, done, last_line=self._last_line)
            self._current.__enter__()
        if self._current is not None:
            self._current.set(done, total=total)
