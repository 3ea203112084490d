"""`train` works on the first two prompts that anybody tries, says what it did, and refuses what makes no sense."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx_lm
import pytest
from clocks import Ticking

from draftloop.config import Models
from draftloop.retraining import vocabulary_choice
from draftloop.training import loop as loop_module
from draftloop.training import train as train_module
from draftloop.training.result import TrainResult


@pytest.fixture
def collected(call_with_pair):
    found = call_with_pair(
        "collect-data", "-p", "What is Python?", "-p", "Explain AI", "--max-tokens", "12", "--seed", "1"
    )
    assert found.code == 0, found.err


@pytest.mark.usefixtures("collected")
def test_two_prompts_are_enough_and_it_says_that_nothing_could_be_held_out(call_with_pair) -> None:
    found = call_with_pair("train", "--epochs", "1", "--rank", "2")
    assert found.code == 0, found.err
    assert "v0001" in found.out
    assert "no validation generation" in found.out
    assert "no validation generation" in found.err
    assert re.search(r"learning rate +[\d.]+ \(by the draft's width\)", found.out)
    assert "by the draft's width: there is no validation generation to test rates on" in found.err
    assert re.search(r"Trained on 24 positions of 2 generations, \d+ of them rejected\.", found.out)
    assert "What the target still rejects, on 24 positions of 2 failures it trained on:" in found.out
    waits = "Next: v0001 waits for the gate, with 0 of 12 held-out prompts; collect about 68 more prompts. "
    assert waits in found.out
    assert "`benchmark acceptance --adapter latest` (no prompt is held out yet, so it flatters)" in found.out


@pytest.mark.usefixtures("collected")
def test_the_table_of_what_is_missed_fits_a_terminal_and_says_what_the_run_keeps(call_with_pair, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = call_with_pair("train", "--epochs", "1", "--rank", "2")
    assert found.code == 0, found.err
    lessons = json.loads(Path("data/runs/r0001/result.json").read_text())["lessons"]
    assert lessons["learned_from"] == lessons["measured_on"]
    table = found.out[found.out.index("What the target still rejects") :].splitlines()
    assert max(map(len, table[: len(lessons["kinds"]) + 6])) <= 80
    for row in lessons["kinds"]:
        line = next(line for line in map(str.strip, table) if line.startswith(row["kind"]))
        numbers = line.removeprefix(row["kind"]).split()
        shares = [f"{row[name]:.0%}" for name in ("share", "remaining")]
        means = [f"{row[f'acceptance_{when}']:.3f}" for when in ("before", "after")]
        assert numbers == [str(row["positions"]), shares[0], str(row["rejected"]), *means, shares[1]]


@pytest.mark.usefixtures("collected")
def test_json_says_what_the_text_says_and_the_version_loads_in_plain_mlx_lm(
    call_with_pair, small_models: Models
) -> None:
    found = call_with_pair("train", "--epochs", "2", "--rank", "2", "--json")
    assert found.code == 0, found.err
    values = found.json
    assert (values["status"], values["version"], values["failures"]) == ("ok", "v0001", 2)
    assert values["train_loss_before"] != values["train_loss_after"]
    assert values["lessons"] == json.loads(Path(values["run_path"], "result.json").read_text())["lessons"]
    assert values["peak_rate"]["by"] == "width"
    assert values["learning_rate"] == values["peak_rate"]["rate"]
    mlx_lm.load(small_models.draft, adapter_path=values["path"])


@pytest.mark.usefixtures("collected")
def test_a_learning_rate_that_is_given_is_the_one_that_is_trained_with(call_with_pair) -> None:
    found = call_with_pair("train", "--epochs", "1", "--rank", "2", "--learning-rate", "1e-3")
    assert found.code == 0, found.err
    assert re.search(r"learning rate +0\.001 \(given\)", found.out)
    assert "by the draft's width" not in found.err
    refused = call_with_pair("train", "--learning-rate", "2")
    assert refused.code == 2
    assert "training.learning_rate = '2': expected auto, or a number above 0 and at most 1" in refused.err


@pytest.mark.usefixtures("collected")
def test_a_second_training_starts_from_the_champion_unless_asked_otherwise(call_with_pair, call) -> None:
    assert call_with_pair("train", "--epochs", "1", "--rank", "2").code == 0
    assert call_with_pair("train", "--epochs", "1", "--rank", "2", "--json").json["parent"] is None
    assert call("adapters", "promote", "v0001").code == 0
    assert call_with_pair("train", "--epochs", "1", "--rank", "2", "--json").json["parent"] == "v0001"
    assert call_with_pair("train", "--epochs", "1", "--rank", "2", "--from-base", "--json").json["parent"] is None


@pytest.mark.parametrize(
    ("best_step", "teacher", "chooses"), [(0, "live", False), (3, "live", True), (3, "logged", False)]
)
@pytest.mark.usefixtures("collected")
def test_tokens_are_chosen_for_good_with_a_version_that_learned_something(
    call_with_pair, monkeypatch, best_step: int, teacher: str, chooses: bool
) -> None:
    chosen: list[str] = []
    train = train_module.train

    def trained(*arguments: Any, **options: Any) -> TrainResult:
        return replace(train(*arguments, **options), best_step=best_step)

    monkeypatch.setattr(train_module, "train", trained)
    monkeypatch.setattr(vocabulary_choice, "settle_vocabulary", lambda *_arguments: chosen.append("chosen"))
    found = call_with_pair("train", "--epochs", "1", "--rank", "2", "--teacher", teacher)
    assert found.code == 0, found.err
    assert bool(chosen) == chooses


def test_nothing_logged_is_nothing_to_do(call_with_pair) -> None:
    found = call_with_pair("train")
    assert found.code == 10
    assert found.err.startswith("nothing to do: ")
    assert not Path("data/adapters").exists()


def test_resume_without_a_run_names_what_there_is(call) -> None:
    found = call("train", "--resume")
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert "no run 'latest' to resume" in found.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume", "r0001", "--epochs", "3"], "leave the other options out, but --max-minutes"),
        (["--resume", "r0001", "--max-minutes", "3", "--from-base"], "leave the other options out, but --max-minutes"),
        (["--resume", "--max-minutes", "0"], "training.max_minutes = 0.0: input should be greater than 0"),
        (["--resume", "--max-minutes", "inf"], "training.max_minutes = inf: input should be a finite number"),
        (["--max-minutes", "0"], "training.max_minutes = 0.0: input should be greater than 0"),
        (["--max-minutes", "soon"], "'soon' is not a valid float"),
        (["--resume", "r0007", "--max-minutes", "3"], "no run 'r0007' to resume"),
    ],
)
def test_time_that_makes_no_sense_is_refused_in_one_line(call, options: list[str], message: str) -> None:
    found = call("train", *options)
    assert found.code == 2
    assert message in found.err
    assert found.err.count("error: ") <= 1
    assert list(Path().glob("data/runs/r*")) == []


@pytest.mark.usefixtures("collected")
def test_a_limit_that_is_over_before_the_plan_says_how_to_go_on_and_resuming_with_more_time_does(
    call_with_pair, call, monkeypatch
) -> None:
    monkeypatch.setattr(loop_module, "WorkingTime", Ticking)
    first = call_with_pair("train", "--epochs", "100", "--rank", "2", "--max-minutes", "1", "--batch-size", "1")
    assert first.code == 0, first.err
    assert re.search(r"steps +\d+ of 300 \(time limit\)", first.out)
    assert "The time limit ended it. More time: `train --resume r0001 --max-minutes M`." in first.out
    assert re.search(r"s a step: \d+ of 300 planned steps fit into 1 minute; the schedule ends there", first.err)
    refused = call("train", "--resume", "r0001")
    assert (refused.code, "--max-minutes M` gives it M more minutes" in refused.err) == (2, True)
    second = call("train", "--resume", "--max-minutes", "2", "--json")
    assert second.code == 0, second.err
    assert (second.json["run"], second.json["version"], second.json["ended"]) == ("r0001", "v0002", "time limit")
    assert re.search(r"goes on after step \d+ of 300, for 2 more minutes from there", second.err)
