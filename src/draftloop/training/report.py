"""What a training says while it runs: to the terminal, to `train.log` and to `metrics.jsonl`. Knows no model.

On a terminal a live bar on stderr moves with every step; elsewhere a plain line comes with every report.
`metrics.jsonl` has one JSON object a report (`kind` train) and one a validation (`kind` validation), with their step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..store.atomic import write_atomically
from ..store.files import FILES, Files, storing

TRAIN = "train"
VALIDATION = "validation"


class Reporter:
    """The voice of one run.

    Args:
        directory: of the run; `train.log` and `metrics.jsonl` there are appended to.
        quiet: nothing to the terminal, not even plain lines.
        on_step: told after every step how many are done and of how many.
        console: stderr by default.
        files: the seam for the operations that change something.
    """

    def __init__(
        self,
        directory: Path,
        quiet: bool = False,
        on_step: Callable[[int, int], None] | None = None,
        console: Console | None = None,
        files: Files = FILES,
    ) -> None:
        self._log = directory / "train.log"
        self._metrics = directory / "metrics.jsonl"
        self._on_step = on_step
        self._files = files
        self._console = console or Console(stderr=True, quiet=quiet)
        self._live: tuple[Progress, TaskID] | None = None

    def say(self, text: str) -> None:
        """A line that matters: to the terminal and the log."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._record(text)

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps after `step`, which a resumed run makes again."""
        if self._metrics.is_file():
            lines = self._metrics.read_bytes().splitlines(keepends=True)
            with storing(self._metrics):
                kept = b"".join(line for line in lines if _step_of(line) <= step)
                write_atomically(self._metrics, kept, self._files)

    @contextmanager
    def live(self, steps: int, done: int) -> Iterator[None]:
        """A bar over the steps of the training for as long as the block runs; only on a terminal."""
        if not self._console.is_terminal or self._console.quiet:
            yield
            return
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            self._live = progress, progress.add_task("", total=steps, completed=done)
            try:
                yield
            finally:
                self._live = None

    def move(self, step: int, steps: int, text: str) -> None:
        """Move the bar, if there is one, and tell whoever wants to know."""
        if self._on_step is not None:
            self._on_step(step, steps)
        if self._live is not None:
            progress, task = self._live
            progress.update(task, completed=step, description=text)

    def note(self, text: str) -> None:
        """What is going on between two steps, for the bar alone."""
        if self._live is not None:
            progress, task = self._live
            progress.update(task, description=text)

    def report(self, kind: str, values: dict[str, Any], text: str) -> None:
        """A row of metrics, and its line where no bar shows it already."""
        with storing(self._metrics):
            self._append(self._metrics, orjson.dumps({"kind": kind, **values}) + b"\n")
        if self._live is None or kind == VALIDATION:
            self.say(text)
        else:
            self._record(text)

    def _record(self, text: str) -> None:
        with storing(self._log):
            self._append(self._log, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode("utf-8", "replace"))

    def _append(self, path: Path, data: bytes) -> None:
        descriptor = self._files.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            self._files.write_all(descriptor, data)
        finally:
            os.close(descriptor)


def _step_of(line: bytes) -> int:
    """The step of a row; a torn one counts as beyond any."""
    try:
        return int(orjson.loads(line)["step"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return 1 << 62
