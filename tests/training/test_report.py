from __future__ import annotations

import io

import orjson
import pytest
from rich.console import Console

from draftloop.training.report import TRAIN, VALIDATION, Reporter


def make(tmp_path, terminal: bool = False, **settings) -> tuple[Reporter, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=60, quiet=settings.pop("quiet", False))
    return Reporter(tmp_path, console=console, **settings), screen


def rows(tmp_path) -> list[dict]:
    return [orjson.loads(line) for line in (tmp_path / "metrics.jsonl").read_bytes().splitlines()]


def test_without_a_terminal_every_report_is_one_plain_line(tmp_path):
    reporter, screen = make(tmp_path)
    with reporter.live(10, 0):
        reporter.move(1, 10, "not shown")
        reporter.report(TRAIN, {"step": 1}, "step 1/10: loss [bold]2.5[/bold] " + "x" * 80)
    assert screen.getvalue() == "step 1/10: loss [bold]2.5[/bold] " + "x" * 80 + "\n"


def test_on_a_terminal_a_bar_moves_and_reports_go_to_the_log_alone(tmp_path):
    reporter, screen = make(tmp_path, terminal=True)
    with reporter.live(10, 0):
        reporter.move(5, 10, "halfway")
        reporter.report(TRAIN, {"step": 5}, "a report")
        reporter.report(VALIDATION, {"step": 5}, "a validation")
    assert "5/10" in screen.getvalue()
    assert "a validation" in screen.getvalue()
    assert "a report" not in screen.getvalue()
    assert "a report" in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_says_nothing_and_still_records(tmp_path, terminal):
    reporter, screen = make(tmp_path, terminal, quiet=True)
    with reporter.live(10, 0):
        reporter.move(1, 10, "x")
        reporter.say("a warning")
        reporter.report(TRAIN, {"step": 1}, "a report")
    assert screen.getvalue() == ""
    assert "a warning" in (tmp_path / "train.log").read_text()
    assert rows(tmp_path) == [{"kind": "train", "step": 1}]


def test_whoever_wants_to_know_is_told_of_every_step(tmp_path):
    told = []
    reporter, _ = make(tmp_path, on_step=lambda done, steps: told.append((done, steps)))
    reporter.move(3, 10, "")
    assert told == [(3, 10)]


def test_rows_of_steps_that_come_again_are_forgotten_torn_ones_too(tmp_path):
    reporter, _ = make(tmp_path)
    for step in (2, 4, 6):
        reporter.report(TRAIN, {"step": step}, "")
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind":"tra')
    reporter.forget_after(4)
    assert [row["step"] for row in rows(tmp_path)] == [2, 4]


def test_files_are_private(tmp_path):
    reporter, _ = make(tmp_path)
    reporter.report(TRAIN, {"step": 1}, "a report with a lone \ud800 surrogate")
    for name in ("metrics.jsonl", "train.log"):
        assert oct((tmp_path / name).stat().st_mode & 0o777) == "0o600"
