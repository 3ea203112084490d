"""Progress on stderr: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """`advance` it from 0 to `total`."""

    def __init__(self, what: str, total: int) -> None:
        """Name the work in one word, and say how many pieces it has."""
        self._what = what
        self._total = total
        self._done = 0
        self._said = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True) if sys.stderr.isatty() else None
        self._task = self._bar.add_task(what, total=total, detail="") if self._bar else None

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, pieces: int, detail: str = "") -> None:
        """So many pieces more are done; `detail` says how it goes."""
        self.set(self._done + pieces, detail)

    def set(self, done: int, detail: str = "") -> None:
        """So many pieces are done in all."""
        self._done = done
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, detail=detail)
        elif time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES or self._done >= self._total:
            self._said = time.monotonic()
            print(f"{self._what} {self._done}/{self._total} {detail}".rstrip(), file=sys.stderr, flush=True)


class Steps:
    """Several pieces of work one after the other, each with its own bar."""

    def __init__(self) -> None:
        """Nothing is shown before the first step."""
        self._what = ""
        self._current: Progress | None = None

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
            self._what, self._current = what, Progress(what, total)
            self._current.__enter__()
        if self._current is not None:
            self._current.set(done)

    def _close(self) -> None:
        if self._current is not None:
            self._current.__exit__(None, None, None)
            self._current = None
