"""Every command that works with models says on stderr which configuration, models and data directory these are."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftloop.config import Models, resolve
from draftloop.data_directory import DataDirectory
from draftloop.errors import Interrupted
from draftloop.models.pair import load_pair
from draftloop.runtime.signals import StopRequest
from draftloop.training.train import train

NOWHERE = "no configuration here (looked for configs/config.yaml, configs/default.yaml)"
EMBEDDED = "embedded:target + embedded:draft"
SHORT = ["--max-tokens", "4", "--num-draft-tokens", "2"]


@pytest.fixture
def named(_place: None, small_models: Models) -> str:
    """A configuration that names the small pair; returns the words for it."""
    Path("configs").mkdir()
    Path("configs/config.yaml").write_text(
        f"models: {{target: {small_models.target}, draft: {small_models.draft}}}\n"
        "training: {answers: 0, proposals: 0, epochs: 1, lora: {rank: 2}}\n"
    )
    return f"config configs/config.yaml · {small_models.target} + {small_models.draft} · data data/\n"


def test_every_command_that_loads_them_says_it_once(call, named: str) -> None:
    Path("p.txt").write_text("the target\n")
    prompts = ["--prompts-file", "p.txt"]
    for command in (
        ["collect-data", "-p", "the target", *SHORT],
        ["generate", "the target", *SHORT],
        ["train"],
        ["benchmark", "acceptance", *prompts, *SHORT],
        ["benchmark", "speed", *prompts, *SHORT, "--repeats", "1"],
        ["adapters", "export", "v0001", "--to", "out"],
        ["retrain"],
        ["retrain", "--dry-run"],
    ):
        for more in ([], ["--json"]) if command[0] in ("generate", "retrain") else [[]]:
            found = call(*command, *more)
            assert found.code in (0, 12), found.err
            assert found.err.count(named) == 1, command
            assert named not in found.out
            if more:
                assert found.json["schema_version"] == 1  # stdout stays one object


def test_the_embedded_pair_is_never_taken_in_silence(call) -> None:
    assert f"{NOWHERE}: the embedded pair, {EMBEDDED} · data data/\n" in call("generate", "x", *SHORT).err
    Path("configs").mkdir()
    for text, said in (("", "is empty"), ("# models:\n", "is empty"), ("drift: {horizon: 99}\n", "names no models")):
        Path("configs/config.yaml").write_text(text)
        line = f"config configs/config.yaml {said}: the embedded pair, {EMBEDDED} · data data/\n"
        assert line in call("generate", "x", *SHORT).err


def test_status_doctor_and_schedule_show_it_with_absolute_paths(call, tmp_path: Path, named: str) -> None:
    target, draft = named.split(" · ")[1].split(" + ")
    wanted = {
        "config": str(tmp_path / "configs/config.yaml"),
        "models": {"target": target, "draft": draft},
        "data_dir": str(tmp_path / "data"),
    }
    for command in (["status"], ["doctor", "--no-pair"], ["schedule", "show", "--kind", "cron"]):
        values = call(*command, "--json").json
        assert {name: values[name] for name in wanted} == wanted
        text = call(*command).out
        assert all(part in text for part in (wanted["config"], f"{target} + {draft}", wanted["data_dir"]))


def test_doctor_warns_of_a_file_that_names_no_models(call) -> None:
    assert "ok      config: none here" in call("doctor", "--no-pair").out
    Path("configs").mkdir()
    Path("configs/config.yaml").touch()
    found = call("doctor", "--no-pair")
    assert found.code == 0
    assert "warning config: " in found.out
    assert "-> name models.target and models.draft in it\n" in found.out


def test_a_configuration_that_is_there_and_cannot_be_read_is_not_passed_over(call) -> None:
    Path("configs").mkdir()
    Path("configs/default.yaml").write_text("training: {min_failure_cases: 7}\n")
    Path("configs/config.yaml").symlink_to("nowhere.yaml")
    for command in (["status"], ["generate", "x"], ["adapters", "list"]):
        found = call(*command)
        assert (found.code, found.out) == (2, "")
        assert "configs/config.yaml: cannot be read: no such file or directory" in found.err


@pytest.mark.parametrize("flag", ["-c", "--data-dir"])
def test_an_empty_path_is_refused(flag: str, call, tmp_path: Path) -> None:
    """It would be the working directory, where the shell knew no variable."""
    found = call(flag, "", "collect-data", "-p", "x")
    assert (found.code, found.out) == (2, "")
    assert "it is empty; expected a path" in found.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["DRAFTLOOP_CONFIG", "DRAFTLOOP_DATA_DIR"])
def test_an_empty_variable_is_refused(name: str, call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "")
    for command in (["status"], ["collect-data", "-p", "x"], ["adapters", "list"]):
        found = call(*command)
        assert (found.code, found.out) == (2, "")
        assert f"environment variable {name} is set and empty; expected a path, or unset it" in found.err


def test_a_run_that_goes_on_says_that_its_own_settings_are_used(call, named: str) -> None:
    assert call("collect-data", "-p", "the target", "-p", "learns", *SHORT).code == 0
    config, stop = resolve().config, StopRequest()
    stop.requested = True
    with pytest.raises(Interrupted):
        train(load_pair(config.models), DataDirectory(Path("data")), config, quiet=True, stop=stop)
    Path("configs/config.yaml").unlink()
    found = call("train", "--resume")
    assert found.code == 0, found.err
    assert f"settings of run r0001 · {named.split(' · ')[1]} · data data/\n" in found.err
    assert "no configuration here" not in found.err


def test_a_mistake_stays_one_line(call, named: str) -> None:
    for command in (["generate", ""], ["collect-data", "-p", ""], ["generate", "x", "--max-tokens", "9999"]):
        found = call(*command)
        assert (found.code, found.err.count("\n"), found.err.startswith("error: ")) == (2, 1, True)


def test_collecting_says_it_before_its_progress(call, named: str) -> None:
    found = call("collect-data", "-p", "the target", "-p", "learns", *SHORT)
    assert found.err.startswith(named)
