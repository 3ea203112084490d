"""What stderr shows on a terminal of 80 columns: whole words, whole lines, and a bar before anything is done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from terminals import lines_of_a_program, lines_on_a_terminal

from draftloop.cli import app, tables

NOTE = "of three notes this one is the longest, and it names data/runs/r0001/a/path/that/is/longer/than/all/of/its/line"


def test_a_note_is_one_line_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    app.note(NOTE)
    assert capsys.readouterr().err == f"{NOTE}\n"


def test_a_note_is_broken_between_words_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "stderr_columns", lambda: 40)
    app.note(NOTE)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "of three notes this one is the longest,",
        "and it names",
        "data/runs/r0001/a/path/that/is/longer/than/all/of/its/line",
    ]


def test_an_error_on_a_terminal_is_in_lines_of_whole_words(tmp_path: Path) -> None:
    code, lines = lines_on_a_terminal(["train", "--resume", "r0001", "--epochs", "3"], tmp_path)
    assert code == 2
    said = " ".join(lines)
    assert said == (
        "error: --resume goes on with the run's own settings: leave the other options out, but --max-minutes"
    )
    assert len(lines) == 2
    assert max(map(len, lines)) <= 80


WITH_A_BAR = """
from draftloop.cli import output
from draftloop.cli.app import note
from draftloop.cli.progress import Steps
output.guard()
with Steps() as steps:
    steps.at("training", 3, 14)
    note("scoring 25 held-out generations, which is a sentence that is longer than what is left of one line")
    steps.at("training", 4, 14)
"""


def test_a_note_that_comes_while_a_bar_is_shown_has_lines_of_its_own(tmp_path: Path) -> None:
    code, lines = lines_of_a_program(WITH_A_BAR, [], tmp_path)
    assert code == 0
    bars = [line for line in lines if line.startswith("training")]
    assert all(re.fullmatch(r"training ━+ [34]/14 \d+:\d\d(, \d+:\d\d left)?", line) for line in bars)
    assert [line for line in lines if line not in bars] == [
        "scoring 25 held-out generations, which is a sentence that is longer than what is",
        "left of one line",
    ]


def test_collecting_and_training_show_whole_lines_of_a_bar_from_the_beginning_on(
    pair_flags: list[str], tmp_path: Path
) -> None:
    prompts = [part for number in range(4) for part in ("-p", f"What is number {number}?")]
    collect = ["collect-data", *prompts, "--max-tokens", "12", *pair_flags]
    train = ["train", "--epochs", "2", "--rank", "2", *pair_flags]
    for command, first, last in (
        (collect, r"collecting +0/4 0:0", r"collecting "),
        (train, "training 0:0", r"\d+/\d+"),
    ):
        code, lines = lines_on_a_terminal(command, tmp_path)
        assert code == 0, lines
        assert max(map(len, lines)) <= 80
        bars = [line for line in lines if re.match(r"(collecting|training) (.* )?\d+:\d\d", line)]
        assert re.match(first, bars[0].replace("━", "")), bars[0]
        assert re.search(last, bars[-1])


def test_sentences_on_stdout_are_broken_between_words_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.print_text(f"\n{NOTE}")
    assert capsys.readouterr().out == f"\n{NOTE}\n"
    monkeypatch.setattr(tables, "_width", lambda: 40)
    tables.print_text(f"\n{NOTE}")
    assert capsys.readouterr().out.splitlines()[:3] == ["", "of three notes this one is the longest,", "and it names"]
