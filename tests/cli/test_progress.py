"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere; its estimate counts what is in work."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from draftloop.cli.progress import ProgressBar, Steps


class Now:
    """A clock that goes on when asked."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now() -> Now:
    return Now()


def shown(screen: io.StringIO) -> list[str]:
    """The frames that a terminal drew, one after the other, without those drawn again."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    found = [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    return [line for i, line in enumerate(found) if i == 0 or line != found[i - 1]]


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


def terminal(screen: io.StringIO) -> Console:
    return Console(file=screen, force_terminal=True, width=80, color_system=None, _environ={"TERM": "xterm"})


def test_on_a_terminal_the_bar_is_there_before_anything_is_done(screen: io.StringIO, now: Now) -> None:
    with ProgressBar("collecting", 60, console=terminal(screen), clock=now):
        pass
    assert shown(screen)[0] == "collecting                                          0/60 0:00"


def test_pieces_in_work_move_the_bar_and_the_estimate(screen: io.StringIO, now: Now) -> None:
    with ProgressBar("collecting", 60, console=terminal(screen), clock=now) as progress:
        now.seconds = 30.0
        progress.move(0.25, "1,920 tokens, 64 tokens/s")
    assert shown(screen)[-1] == "collecting ━━━━━                 0/60 0:30, 1:30 left, 1,920 tokens, 64 tokens/s"


def test_the_bar_never_goes_back(screen: io.StringIO, now: Now) -> None:
    with ProgressBar("collecting", 10, console=terminal(screen), clock=now) as progress:
        now.seconds = 10.0
        progress.move(0.5)
        progress.set(3)
    assert shown(screen)[-1] == "collecting ━━━━━━━━━━━━━━━━━━━━                     3/10 0:10, 0:10 left"


def test_what_was_done_before_says_nothing_of_the_pace(screen: io.StringIO, now: Now) -> None:
    with ProgressBar("training", 100, begun=50, console=terminal(screen), clock=now) as progress:
        now.seconds = 10.0
        progress.set(60)
    assert shown(screen)[-1].endswith(" 60/100 0:10, 0:40 left")


def test_what_prepares_all_pieces_says_nothing_of_the_pace(capsys, now: Now) -> None:
    with ProgressBar("training", 100, clock=now) as progress:
        now.seconds = 600.0
        progress.set(0)
        now.seconds = 610.0
        progress.set(10)
    assert capsys.readouterr().err == "training 0/100\ntraining 10/100 1:30 left\n"


def test_another_total_is_taken_over(screen: io.StringIO, now: Now) -> None:
    with ProgressBar("training", 505, console=terminal(screen), clock=now) as progress:
        progress.set(2, total=505)
        now.seconds = 10.0
        progress.set(20, total=40)
    assert shown(screen)[-1].endswith(" 20/40 0:10, 0:10 left")


def test_without_a_terminal_a_plain_line_comes_every_ten_seconds_and_one_at_the_end(capsys, now: Now) -> None:
    with ProgressBar("collecting", 60, clock=now) as progress:
        for seconds, done in ((1, 1), (9, 5), (11, 12), (12, 13), (22, 30), (30, 60), (31, 60)):
            now.seconds = float(seconds)
            progress.set(done, "acceptance length 1.47, 92 tokens/s")
    assert capsys.readouterr().err.splitlines() == [
        "collecting 12/60 0:44 left, acceptance length 1.47, 92 tokens/s",
        "collecting 30/60 0:22 left, acceptance length 1.47, 92 tokens/s",
        "collecting 60/60 acceptance length 1.47, 92 tokens/s",
    ]


def test_a_plain_line_says_what_is_in_work_too(capsys, now: Now) -> None:
    with ProgressBar("collecting", 60, clock=now) as progress:
        now.seconds = 10.0
        progress.move(0.1, "640 tokens")
    assert capsys.readouterr().err == "collecting 0/60 1:30 left, 640 tokens\n"


def test_steps_have_a_line_each(capsys) -> None:
    with Steps() as steps:
        for what, done, total in (("training", 0, 9), ("training", 4, 5), ("training", 5, 5), ("scoring", 7, 7)):
            steps.at(what, done, total)
    assert capsys.readouterr().err.splitlines() == ["training 5/5", "scoring 7/7"]


def test_work_of_which_nobody_knows_how_much_there_is_has_a_clock_and_no_plain_line(
    screen: io.StringIO, now: Now, capsys
) -> None:
    with ProgressBar("getting ready to train", 0, console=terminal(screen), clock=now) as progress:
        now.seconds = 12.0
        progress.set(0)
    assert shown(screen)[-1] == "getting ready to train 0:12"
    with ProgressBar("getting ready to train", 0, clock=now) as progress:
        now.seconds = 60.0
        progress.set(0)
    assert capsys.readouterr().err == ""


def test_a_last_line_is_left_out_where_it_was_quick(capsys, now: Now) -> None:
    with ProgressBar("measuring", 3, last_line=False, clock=now) as progress:
        now.seconds = 11.0
        progress.set(2)
        progress.set(3)
    assert capsys.readouterr().err == "measuring 2/3 0:06 left\n"
