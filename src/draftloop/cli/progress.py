"""Progress on stderr: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console

from ..runtime.bars import Bar, Frame, duration

_SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """`advance` it from 0 to `total`.

    Args:
        what: the work, in a word or two.
        total: how many pieces it has; 0 where nobody knows, which is nothing to say without a terminal.
        begun: of them, done before.
        last_line: whether a plain line says at the end that all are done, however quick that was.
        console: where the bar is shown; stderr by default.
        clock: seconds that never go backward.
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
        self._said, self._says_last = self._began, last_line
        self._bar = Bar(what, console, clock)
        self._bar.tell(Frame(what, begun, total or None, self._share))

    def __enter__(self) -> ProgressBar:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self._clock() - self._began

    def advance(self, pieces: int, detail: str = "") -> None:
        """So many pieces more are done; `detail` says how it goes."""
        self.set(self._done + pieces, detail)

    def set(self, done: int, detail: str = "", total: int | None = None) -> None:
        """So many pieces are done in all; of `total`, where that has changed."""
        if total is not None and total != self._total:
            self._total, self._share = total, 0.0
        self._done = done
        self.move(done / self._total if self._total else 1.0, detail)

    def move(self, share: float, detail: str = "") -> None:
        """So much of the work is done, from 0 to 1: pieces that are in work count in part. It never goes back."""
        self._share, self._detail = max(self._share, min(1.0, share)), detail
        if not self._total:
            self._bar.note(detail)
            return
        if self._bar.is_live:
            self._bar.tell(Frame(self._what, self._done, self._total, self._share, left=self._left(), detail=detail))
        elif self._done >= self._total:
            if self._says_last:
                self._says_last = False
                self._say()
        elif self._clock() - self._said >= _SECONDS_BETWEEN_LINES:
            self._say()

    def _left(self) -> float | None:
        """Seconds, where it goes on as fast as so far; None as long as nothing is done, and at the end."""
        done = self._share - self._before
        return self.seconds * (1 - self._share) / done if done > 0 and self._share < 1 else None

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def at(self, what: str, done: int, total: int) -> None:
        """`done` of `total` pieces of `what` are done."""
        if what != self._what:
            self._close()
            self._what, self._current = what, ProgressBar(what, total, done, last_line=self._last_line)
            self._current.__enter__()
        if self._current is not None:
            self._current.set(done, total=total)

    def _close(self) -> None:
        if self._current is not None:
            self._current.__exit__(None, None, None)
            self._current = None
