from __future__ import annotations

import io

import orjson
import pytest
from rich.console import Console

from draftloop.training.report import TRAIN, VALIDATION, Reporter, detail_of, line_of


def make(tmp_path, terminal: bool = False, **settings) -> tuple[Reporter, io.StringIO]:
    screen = io.StringIO()
    quiet, environment = settings.pop("quiet", False), {"TERM": "xterm"}
    console = Console(file=screen, force_terminal=terminal, width=60, quiet=quiet, _environ=environment)
    return Reporter(tmp_path, console=console, **settings), screen


def rows(tmp_path) -> list[dict]:
    return [orjson.loads(line) for line in (tmp_path / "metrics.jsonl").read_bytes().splitlines()]


def test_without_a_terminal_every_report_is_one_plain_line(tmp_path):
    reporter, screen = make(tmp_path)
    with reporter.live():
        reporter.move(1, 10, "not shown")
        reporter.report(TRAIN, {"step": 1}, "step 1/10: loss [bold]2.5[/bold] " + "x" * 80)
    assert screen.getvalue() == "step 1/10: loss [bold]2.5[/bold] " + "x" * 80 + "\n"


def test_on_a_terminal_a_bar_moves_and_reports_go_to_the_log_alone(tmp_path):
    reporter, screen = make(tmp_path, terminal=True)
    with reporter.live():
        reporter.report(TRAIN, {"step": 5}, "a report")
        reporter.report(VALIDATION, {"step": 5}, "a validation")
        reporter.move(5, 10, "acceptance 0.5, loss 2.4", left=30.0)
    assert "5/10 0:00, 0:30 left, acceptance 0.5" in screen.getvalue()
    assert "a validation" in screen.getvalue()
    assert "a report" not in screen.getvalue()
    assert "a report" in (tmp_path / "train.log").read_text()


def test_a_bar_shows_that_work_goes_on_before_anybody_knows_how_much_there_is(tmp_path):
    reporter, screen = make(tmp_path, terminal=True)
    with reporter.live():
        reporter.note("measuring what a step takes of the memory")
    assert "training 0:00, measuring what a step takes of the memory" in screen.getvalue()


def test_lines_on_a_terminal_are_broken_between_words_and_whole_in_the_log(tmp_path):
    reporter, screen = make(tmp_path, terminal=True)
    text = "a sentence that is somewhat longer than sixty characters, as many a note of a training is"
    reporter.say(text)
    assert screen.getvalue().splitlines() == [
        "a sentence that is somewhat longer than sixty characters, as",
        "many a note of a training is",
    ]
    assert text in (tmp_path / "train.log").read_text()


def test_what_goes_on_between_two_steps_is_a_plain_line_now_and_then_without_a_terminal(tmp_path):
    now = [0.0]
    reporter, screen = make(tmp_path, clock=lambda: now[0])
    with reporter.live():
        for seconds in range(0, 25, 5):
            now[0] = float(seconds)
            reporter.note(f"the draft writes: {seconds} of 100 texts")
    assert screen.getvalue() == "the draft writes: 10 of 100 texts\nthe draft writes: 20 of 100 texts\n"
    assert not (tmp_path / "train.log").exists()


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_says_nothing_and_still_records(tmp_path, terminal):
    reporter, screen = make(tmp_path, terminal, quiet=True)
    with reporter.live():
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


METRICS = {
    "step": 12,
    "epoch": 1,
    "loss": 2.41,
    "acceptance": 0.4121,
    "gradient_norm": 0.9721,
    "learning_rate": 0.0015,
    "tokens_per_second": 1312.4,
    "peak_memory_gb": 1.9312,
    "skipped_batches": 0,
}


def test_a_row_of_metrics_is_said_in_the_names_and_units_that_tables_have():
    assert line_of(METRICS, 58) == (
        "step 12/58, epoch 1: loss 2.4100, acceptance per position 0.4121, gradient 0.972, learning rate 1.50e-03, "
        "1,312 tokens/s, peak memory 1.93 GB, skipped 0"
    )
    assert detail_of(METRICS) == "acceptance per position 0.4121, loss 2.4100, 1,312 tokens/s"


def test_where_every_batch_was_skipped_there_is_neither_loss_nor_acceptance():
    nothing = {**METRICS, "loss": None, "acceptance": None}
    assert "loss -, acceptance per position -, " in line_of(nothing, 58)
    assert detail_of(nothing) == "1,312 tokens/s"
