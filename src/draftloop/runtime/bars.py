"""A progress bar that is one whole line on a terminal of any width. Knows no work and makes no estimate.

The line is `what bar done/total elapsed, left, detail`. If it is too long, it first loses parts of its detail, from the
end, then its bar, then its times; no word is ever cut. The elapsed time moves by itself, four times per second.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
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
        share: the part of the work that is done, from 0 to 1; finer than a count of pieces.
        elapsed: seconds since it began.
        left: estimated seconds to its end; None if unknown.
        detail: parts with ", " between them, the most important first.
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
        colour: draw the part of the bar that is not done too; without colours both parts would look alike.
        ascii_only: use no other characters.
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
    """The elapsed time, and the time left."""
    left = "" if frame.left is None else f", {duration(frame.left)} left"
    return f"{duration(frame.elapsed)}{left}"


def duration(seconds: float) -> str:
    """Minutes and seconds, from an hour on hours too."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def whole_words(text: str, width: int) -> str:
    """Wrap text to `width` characters, between words only; a longer word stays whole."""
    return "\n".join(
        textwrap.fill(
            part, width, break_long_words=False, break_on_hyphens=False, replace_whitespace=False, drop_whitespace=True
        )
        for part in text.split("\n")
    )


def _fitting(detail: str, room: int) -> str:
    """The first parts of the detail, as many as fit, with what joins them to the line."""
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
    """A bar on a terminal while its block runs; nothing on anything else.

    Args:
        what: the work.
        console: shows the bar; stderr by default.
        clock: monotonic seconds.
    """

    def __init__(self, what: str, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console(stderr=True)
        self._clock, self._began = clock, clock()
        self._frame, self._frame_at = Frame(what), self._began
        self._live: Live | None = None
        if self.console.is_terminal and not self.console.is_dumb_terminal and not self.console.quiet:
            self._live = Live(get_renderable=self._shown, console=self.console, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def is_live(self) -> bool:
        """Whether it is shown on a terminal."""
        return self._live is not None

    def show(self, frame: Frame) -> None:
        """Show this from now on; the elapsed time and the time left move by themselves."""
        self._frame, self._frame_at = frame, self._clock()

    def note(self, detail: str) -> None:
        """Show another detail."""
        self._frame = replace(self._frame, detail=detail)

    @property
    def frame(self) -> Frame:
        """What is shown now."""
        now, left = self._clock(), self._frame.left
        left = None if left is None else left - (now - self._frame_at)
        return replace(self._frame, elapsed=now - self._began, left=left if left is None or left > 0 else None)

    def _shown(self) -> RenderableType:
        console = self.console
        colour = console.color_system is not None and not console.no_color
        return line(self.frame, console.width, colour=colour, ascii_only=console.options.ascii_only)


def stderr_columns() -> int | None:
    """The width of stderr's terminal; None if it is no terminal."""
    return Console(stderr=True).width if sys.stderr is not None and sys.stderr.isatty() else None
