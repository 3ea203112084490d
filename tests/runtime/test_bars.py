"""A bar is one whole line: what it looks like at 80 columns, and that nothing is ever cut or wrapped."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from draftloop.runtime import bars
from draftloop.runtime.bars import Bar, Frame, duration, line, whole_words

START = Frame("training", 0, 58, 0.0, elapsed=0.4)
MIDDLE = Frame("training", 12, 58, 12 / 58, elapsed=42.0, left=151.0, detail="accepted per position 0.4121, loss 2.41")
LONG = replace(MIDDLE, detail="accepted per position 0.4121, loss 2.4121, 312 tokens/s")
END = replace(MIDDLE, done=58, share=1.0, elapsed=3661.0, left=None)
COLLECTING = Frame("collecting", 0, 1234, 0.1, elapsed=31.0, left=279.0, detail="1,234 tokens, 92 tokens/s")
UNKNOWN = Frame("training", elapsed=3.0, detail="measuring what a step takes of the memory")

GOLDEN = {
    "start": (START, "training                                          0/58 0:00"),
    "middle": (MIDDLE, "training ━━━━                12/58 0:42, 2:31 left, accepted per position 0.4121"),
    "long": (LONG, "training ━━━━                12/58 0:42, 2:31 left, accepted per position 0.4121"),
    "end": (END, "training ━━━━━━━━━━━━━━━━ 58/58 1:01:01, accepted per position 0.4121, loss 2.41"),
    "in part": (COLLECTING, "collecting ━━                 0/1,234 0:31, 4:39 left, 1,234 tokens, 92 tokens/s"),
    "no total": (UNKNOWN, "training 0:03, measuring what a step takes of the memory"),
}


def drawn(frame: Frame, width: int = 80, **how: bool) -> str:
    """As a terminal of that width without colours shows it."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None, _environ={"TERM": "xterm"})
    console.print(line(frame, width, **{"colour": False, **how}))
    return screen.getvalue().removesuffix("\n")


@pytest.mark.parametrize("state", GOLDEN)
def test_a_frame_at_80_columns_is_what_it_was(state):
    frame, expected = GOLDEN[state]
    assert drawn(frame) == expected


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (79, "training ━━━━               12/58 0:42, 2:31 left, accepted per position 0.4121"),
        (60, "training ━━━━━━                        12/58 0:42, 2:31 left"),
        (48, "training ━━━━              12/58 0:42, 2:31 left"),
        (41, "training ━━         12/58 0:42, 2:31 left"),
        (40, "training 12/58 0:42, 2:31 left"),
        (29, "training 12/58"),
        (13, "training"),
    ],
)
def test_a_narrow_terminal_loses_whole_parts(width, expected):
    found = drawn(MIDDLE, width)
    assert found == expected
    assert len(found) <= width


WORDS = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=30).filter(
    lambda word: "," not in word
)


@given(
    frame=st.builds(
        Frame,
        what=st.sampled_from(["training", "decoding for real, K = 4"]),
        done=st.integers(0, 10**6),
        total=st.none() | st.integers(1, 10**7),
        share=st.floats(0, 1),
        elapsed=st.floats(0, 1e6),
        left=st.none() | st.floats(0, 1e6),
        detail=st.lists(WORDS, max_size=6).map(", ".join),
    ),
    width=st.integers(30, 200),
)
def test_whatever_is_shown_it_is_one_line_of_whole_parts(frame, width):
    found = drawn(frame, width)
    assert "\n" not in found
    assert len(found) <= width
    if frame.total is not None:
        assert f"{frame.done:,}/{frame.total:,}" in found or len(found) < width
    _, _, detail = found.partition(" left, " if frame.left is not None else f"{duration(frame.elapsed)}, ")
    assert all(part in frame.detail.split(", ") for part in detail.split(", ") if part)


def test_other_characters_for_a_terminal_that_takes_no_others():
    assert drawn(replace(END, detail=""), ascii_only=True) == f"training {'-' * 40} 58/58 1:01:01"


def test_with_colours_the_part_that_is_not_done_is_drawn_too():
    assert drawn(MIDDLE, colour=True).count("━") == 19


@pytest.mark.parametrize("state", GOLDEN)
def test_on_a_terminal_of_80_columns_each_frame_is_drawn_whole_on_one_line(state):
    frame, expected = GOLDEN[state]
    screen, times = io.StringIO(), iter([0.0, 0.0])
    console = Console(file=screen, force_terminal=True, width=80, color_system=None, _environ={"TERM": "xterm"})
    with Bar("", console, clock=lambda: next(times, frame.elapsed)) as bar:
        bar.show(frame)
        bar.show(frame)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()))
    assert expected in [one.rstrip() for one in lines]
    assert max(map(len, lines)) <= 80


def test_the_time_goes_on_by_itself_and_what_is_left_shrinks_with_it():
    now = [100.0]
    bar = Bar("training", Console(file=io.StringIO()), clock=lambda: now[0])
    bar.show(Frame("training", 1, 2, 0.5, left=30.0))
    now[0] += 10.0
    assert (bar.frame.elapsed, bar.frame.left) == (10.0, 20.0)
    now[0] += 60.0
    assert (bar.frame.elapsed, bar.frame.left) == (70.0, None)


def test_where_there_is_no_terminal_a_bar_shows_nothing():
    screen = io.StringIO()
    with Bar("training", Console(file=screen)) as bar:
        bar.show(MIDDLE)
        assert not bar.is_live
    assert screen.getvalue() == ""
    assert sys.stderr is not None
    assert bars.stderr_columns() is None


def test_lines_are_broken_between_words_alone():
    text = "these words are broken and this/path/is/longer/than/a/whole/line.jsonl is not\n  indented\n\nend"
    assert whole_words(text, 20).split("\n") == [
        "these words are",
        "broken and",
        "this/path/is/longer/than/a/whole/line.jsonl",
        "is not",
        "  indented",
        "",
        "end",
    ]
    assert whole_words("all of it fits", 20) == "all of it fits"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0:00"), (59.6, "1:00"), (61.0, "1:01"), (3599.0, "59:59"), (3661.0, "1:01:01")]
)
def test_a_duration_is_said_as_a_clock_shows_it(seconds, said):
    assert duration(seconds) == said


def test_a_terminal_that_cannot_move_its_cursor_shows_no_bar():
    screen = io.StringIO()
    with Bar("training", Console(file=screen, force_terminal=True, _environ={"TERM": "dumb"})) as bar:
        assert not bar.is_live
    assert screen.getvalue() == ""
