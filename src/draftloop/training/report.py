"""What a training reports while it runs: to the terminal, to `train.log` and to `metrics.jsonl`. Knows no model.

On a terminal a live bar on stderr moves with every step; elsewhere a plain line comes with every report.
`metrics.jsonl` has one JSON object a report (`kind` train) and one a validation (`kind` validation), with their step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from ..runtime.bars import Bar, Frame, whole_words
from ..store.atomic import write_atomically
from ..store.files import FILES, Files, storing

TRAIN = "train"
VALIDATION = "validation"
WHAT = "training"  # the label of the bar
SECONDS_BETWEEN_NOTES = 10.0


@dataclass
class Reporter:
    """The reports of one run.

    Attributes:
        directory: of the run; `train.log` and `metrics.jsonl` there are appended to.
        quiet: nothing to the terminal, not even plain lines.
        on_step: told after every step how many are done and of how many.
        console: stderr by default.
        files: the seam for the operations that change something.
        clock: seconds that never go backward.
    """

    directory: Path
    quiet: bool = False
    on_step: Callable[[int, int], None] | None = None
    console: Console | None = None
    files: Files = FILES
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._said = self.clock()
        self._log = self.directory / "train.log"
        self._metrics = self.directory / "metrics.jsonl"
        self._console = self.console or Console(stderr=True, quiet=self.quiet)
        self._bar: Bar | None = None

    def say(self, text: str) -> None:
        """A line that matters: to the terminal and the log."""
        self._print(text)
        self._record(text)

    def _print(self, text: str) -> None:
        self._said = self.clock()
        lines = whole_words(text, self._console.width) if self._console.is_terminal else text
        self._console.print(lines, markup=False, highlight=False, soft_wrap=True)

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps after `step`, which a resumed run makes again."""
        if self._metrics.is_file():
            lines = self._metrics.read_bytes().splitlines(keepends=True)
            with storing(self._metrics):
                kept = b"".join(line for line in lines if _step_of(line) <= step)
                write_atomically(self._metrics, kept, self.files)

    @contextmanager
    def live(self) -> Iterator[None]:
        """A bar for as long as the block runs; only on a terminal."""
        with Bar(WHAT, self._console) as bar:
            self._bar = bar if bar.is_live else None
            try:
                yield
            finally:
                self._bar = None

    def move(self, step: int, steps: int, text: str = "", left: float | None = None) -> None:
        """Move the bar, if there is one, and call `on_step`.

        Args:
            step, steps: made, and of how many.
            text: loss and acceptance, for the bar.
            left: seconds to the end; None where unknown.
        """
        if self.on_step is not None:
            self.on_step(step, steps)
        if self._bar is not None:
            self._bar.show(Frame(WHAT, step, steps, step / steps, left=left, detail=text))

    def note(self, text: str) -> None:
        """What happens between two steps: in the bar, or where there is none in a line every ten seconds."""
        if self._bar is not None:
            self._bar.note(text)
        elif self.clock() - self._said >= SECONDS_BETWEEN_NOTES:
            self._print(text)

    def report(self, kind: str, values: dict[str, Any], text: str) -> None:
        """A row of metrics, and its line where no bar shows it already."""
        self._append(self._metrics, orjson.dumps({"kind": kind, **values}) + b"\n")
        if self._bar is None or kind == VALIDATION:
            self._print(text)
        self._record(text)

    def _record(self, text: str) -> None:
        self._append(self._log, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode("utf-8", "replace"))

    def _append(self, path: Path, data: bytes) -> None:
        with storing(path):
            descriptor = self.files.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                self.files.write_all(descriptor, data)
            finally:
                os.close(descriptor)


def detail_of(values: dict[str, Any]) -> str:
    """A row of metrics for a bar, the most important first."""
    named = (("acceptance per position", values["acceptance"]), ("loss", values["loss"]))
    parts = [f"{name} {value:.4f}" for name, value in named if value is not None]
    return ", ".join([*parts, f"{values['tokens_per_second']:,.0f} tokens/s"])


def line_of(values: dict[str, Any], steps: int) -> str:
    """A row of metrics as one line of a training with so many steps."""
    loss, acceptance = ("-" if values[name] is None else f"{values[name]:.4f}" for name in ("loss", "acceptance"))
    return (
        f"step {values['step']}/{steps}, epoch {values['epoch']}: loss {loss}, acceptance per position {acceptance}, "
        f"gradient {values['gradient_norm']:.3g}, learning rate {values['learning_rate']:.2e}, "
        f"{values['tokens_per_second']:,.0f} tokens/s, peak memory {values['peak_memory_gb']:.3g} GB, "
        f"skipped {values['skipped_batches']}"
    )


def _step_of(line: bytes) -> int:
    """The step of a row; beyond any for a torn one."""
    try:
        return int(orjson.loads(line)["step"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return 1 << 62
