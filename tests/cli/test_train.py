"""`train` works on the first two prompts that anybody tries, says what it did, and refuses what makes no sense."""

from __future__ import annotations

from pathlib import Path

import mlx_lm
import pytest

from draftloop.config import Models


@pytest.fixture
def collected(call_with_pair):
    found = call_with_pair("collect-data", "-p", "What is Python?", "-p", "Explain AI", "--max-tokens", "12")
    assert found.code == 0, found.err


@pytest.mark.usefixtures("collected")
def test_two_prompts_are_enough_and_it_says_that_nothing_could_be_held_out(call_with_pair) -> None:
    found = call_with_pair("train", "--epochs", "1", "--rank", "2")
    assert found.code == 0, found.err
    assert "v0001" in found.out
    assert "nothing was held out" in found.out
    assert "nothing could be held out" in found.err


@pytest.mark.usefixtures("collected")
def test_json_says_what_the_text_says_and_the_version_loads_in_plain_mlx_lm(
    call_with_pair, small_models: Models
) -> None:
    found = call_with_pair("train", "--epochs", "2", "--rank", "2", "--json")
    assert found.code == 0, found.err
    values = found.json
    assert (values["status"], values["version"], values["failures"]) == ("ok", "v0001", 2)
    assert values["train_loss_before"] != values["train_loss_after"]
    mlx_lm.load(small_models.draft, adapter_path=values["path"])


@pytest.mark.usefixtures("collected")
def test_a_second_training_starts_from_the_champion_unless_told_otherwise(call_with_pair, call) -> None:
    assert call_with_pair("train", "--epochs", "1", "--rank", "2").code == 0
    assert call_with_pair("train", "--epochs", "1", "--rank", "2", "--json").json["parent"] is None
    assert call("adapters", "promote", "v0001").code == 0
    assert call_with_pair("train", "--epochs", "1", "--rank", "2", "--json").json["parent"] == "v0001"
    assert call_with_pair("train", "--epochs", "1", "--rank", "2", "--from-base", "--json").json["parent"] is None


def test_nothing_logged_is_nothing_to_do(call_with_pair) -> None:
    found = call_with_pair("train")
    assert found.code == 10
    assert found.err.startswith("nothing to do: ")
    assert not Path("data/adapters").exists()


def test_resume_without_a_run_names_what_there_is(call_with_pair, call) -> None:
    found = call("train", "--resume")
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert "no run 'latest' to resume" in found.err
    assert call("train", "--resume", "r0001", "--epochs", "3").code == 2
