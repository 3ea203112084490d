"""A progress bar that is one whole line, whatever the width of the terminal. Knows no work, and no estimate of its own.

`what bar done/total elapsed, left, detail`: a line that is too long first loses parts of its detail, the last ones
first, then its bar, then its times; no word is ever cut. The time that passed goes on by itself, four times a second.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

LEAST_BAR, MOST_BAR = 10, 40  # characters
_LINE, _ASCII = "━", "-"


@dataclass(frozen=True)
class Frame:
    """What a bar shows at a moment.

    Attributes:
        what: the work, in a word or two.
        done, total: pieces; without a total there is neither count nor bar.
        share: of the work that is done, from 0 to 1: it may be known better than by pieces.
        elapsed: seconds since it began.
        left: seconds to its end; None where nobody knows.
        detail: how it goes: parts with ", " between them, the most important first.
    """

    what: str
    done: int = 0
    total: int | None = None
    share: float = 0.0
    elapsed: float = 0.0
    left: float | None = None
    detail: str = ""


def line(frame: Frame, width: int, *, colour: bool = True, ascii_only: bool = False) -> Text:
    """The frame in at most `width` characters.

    Args:
        frame: what to show.
        width: of the terminal, at least 1.
        colour: whether the part of the bar that is not done is drawn too; without colours nobody could tell them apart.
        ascii_only: whether the terminal takes no other characters.
    """
    counts = "" if frame.total is None else f"{frame.done:,}/{frame.total:,}"
    times = times_of(frame)
    bare = " ".join(part for part in (frame.what, counts, times) if part)
    least = len(bare) if frame.total is None else len(bare) + LEAST_BAR + 1
    if least > width:
        shorter = next((one for one in (bare, f"{frame.what} {counts}".rstrip()) if len(one) <= width), frame.what)
        return Text(shorter, no_wrap=True, overflow="crop")
    detail = _fitting(frame.detail, width - least)
    if frame.total is None:
        return Text(bare + detail, no_wrap=True)
    size = min(MOST_BAR, LEAST_BAR + width - least - len(detail))
    bar = _bar(frame.share, size, _ASCII if ascii_only else _LINE, colour)
    return Text.assemble(frame.what, " ", bar, f" {counts} {times}{detail}", no_wrap=True)


def times_of(frame: Frame) -> str:
    """How long it has taken, and how long it takes still."""
    left = "" if frame.left is None else f", {duration(frame.left)} left"
    return f"{duration(frame.elapsed)}{left}"


def duration(seconds: float) -> str:
    """As a clock shows it: minutes and seconds, from an hour on hours too."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def whole_words(text: str, width: int) -> str:
    """The text in lines of at most `width` characters, broken between words alone; a longer word stays whole."""
    return "\n".join(
        textwrap.fill(
            part, width, break_long_words=False, break_on_hyphens=False, replace_whitespace=False, drop_whitespace=True
        )
        for part in text.split("\n")
    )


def _fitting(detail: str, room: int) -> str:
    """As many parts of the detail as there is room for, from the first on, with what joins them to the line."""
    parts = detail.split(", ") if detail else []
    while parts and len(", ".join(parts)) + 2 > room:
        parts.pop()
    return f", {', '.join(parts)}" if parts else ""


def _bar(share: float, size: int, character: str, colour: bool) -> Text:
    full = round(size * min(1.0, max(0.0, share)))
    rest = character if colour else " "
    return Text.assemble(
        (character * full, "bar.complete" if full < size else "bar.finished"), (rest * (size - full), "bar.back")
    )


class Bar:
    """A bar on a terminal, for as long as its block runs; on anything else nothing.

    Args:
        what: the work.
        console: where it is shown; stderr by default.
        clock: seconds that never go backward.
    """

    def __init__(self, what: str, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console(stderr=True)
        self._clock, self._began = clock, clock()
        self._frame, self._told = Frame(what), self._began
        self._live: Live | None = None
        if self.console.is_terminal and not self.console.is_dumb_terminal and not self.console.quiet:
            self._live = Live(get_renderable=self._shown, console=self.console, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def is_live(self) -> bool:
        """Whether somebody sees it."""
        return self._live is not None

    def tell(self, frame: Frame) -> None:
        """Show this from now on, but for the time that passed, which goes on by itself; so does the time left."""
        self._frame, self._told = frame, self._clock()

    def note(self, detail: str) -> None:
        """Show another detail."""
        self._frame = replace(self._frame, detail=detail)

    @property
    def frame(self) -> Frame:
        """What is shown now."""
        now, left = self._clock(), self._frame.left
        left = None if left is None else left - (now - self._told)
        return replace(self._frame, elapsed=now - self._began, left=left if left is None or left > 0 else None)

    def _shown(self) -> RenderableType:
        console = self.console
        colour = console.color_system is not None and not console.no_color
        return line(self.frame, console.width, colour=colour, ascii_only=console.options.ascii_only)


def stderr_columns() -> int | None:
    """The width of the terminal that stderr is; None where it is none."""
    return Console(stderr=True).width if sys.stderr is not None and sys.stderr.isatty() else None
