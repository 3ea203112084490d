"""The front door: help, version, options before the command, and the uninstalled checkout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_dirs import edit_json, write_pair
from mortal import HANGS

from draftloop import __version__
from draftloop.cli import cli, run_and_exit

COMMANDS = {
    "adapters",
    "benchmark",
    "collect-data",
    "demo",
    "doctor",
    "models",
    "generate",
    "log",
    "retrain",
    "schedule",
    "serve",
    "status",
    "train",
}


def test_help_names_every_command(call) -> None:
    found = call("--help")
    assert (found.code, found.err) == (0, "")
    assert set(cli.commands) == COMMANDS
    for command in COMMANDS:
        assert f"\n  {command} " in found.out


def test_the_version_is_the_packages(call) -> None:
    assert call("--version").out == f"draftloop, version {__version__}\n"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_and_json(command: str, call) -> None:
    found = call(command, "--help")
    assert (found.code, found.err) == (0, "")
    if command not in (
        "adapters",
        "benchmark",
        "log",
        "schedule",
        "serve",
    ):  # groups; and no result
        assert "--json" in found.out


@pytest.mark.parametrize("arguments", [[], ["adapters"], ["benchmark"], ["log"], ["schedule"]], ids=" ".join)
def test_half_a_command_shows_the_help_on_stderr(arguments: list[str], call) -> None:
    found = call(*arguments)
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith(f"Usage: {' '.join(['draftloop', *arguments])} [OPTIONS] COMMAND")
    assert found.err.count("\n") > 5  # as it is written, not squeezed into a line


@pytest.fixture
def _signals() -> Iterator[None]:
    """A process that ends leaves its handlers as they are."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
def test_main_exits_with_the_code_of_the_command(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["draftloop", "nothing"])
    with pytest.raises(SystemExit) as caught:
        run_and_exit()
    assert caught.value.code == 2
    assert "No such command 'nothing'" in capsys.readouterr().err


def test_a_flag_wins_over_the_environment_and_that_over_the_file(call, tmp_path: Path, monkeypatch) -> None:
    def found(*flags: str) -> str:
        """The value in use, as the refusal of it says."""
        return call("generate", "x", *flags).err

    Path("configs").mkdir()
    Path("configs/config.yaml").write_text("speculative: {temperature: 11}\n")
    assert "config.yaml, line 1: speculative.temperature = 11" in found()
    monkeypatch.setenv("DRAFTLOOP_SPECULATIVE_TEMPERATURE", "12")
    assert "DRAFTLOOP_SPECULATIVE_TEMPERATURE: speculative.temperature = '12'" in found()
    assert "flag: speculative.temperature = 13.0" in found("--temp", "13")


def test_a_mistake_in_a_given_file_is_named_even_where_nothing_needs_it(call) -> None:
    Path("my.yaml").write_text("speculative: {temprature: 1}\n")
    found = call("-c", "my.yaml", "status")
    assert (found.code, found.out) == (2, "")
    assert "my.yaml, line 1: unknown key speculative.temprature; did you mean speculative.temperature?" in found.err


def test_a_mistyped_variable_is_refused_even_where_nothing_needs_a_setting(call, monkeypatch) -> None:
    monkeypatch.setenv("DRAFTLOOP_DATADIR", "elsewhere")
    for command in (["status"], ["adapters", "list"], ["demo"]):
        found = call(*command)
        assert (found.code, found.out) == (2, "")
        assert "DRAFTLOOP_DATADIR is none of draftloop's; did you mean DRAFTLOOP_DATA_DIR?" in found.err
    assert call("--help").code == 0


def test_configs_config_yaml_is_taken_where_it_is(call) -> None:
    Path("configs").mkdir()
    Path("configs/default.yaml").write_text("training: {min_failure_cases: 7}\n")
    assert call("status", "--json").json["min_failure_cases"] == 7
    Path("configs/config.yaml").write_text("training: {min_failure_cases: 8}\n")
    assert call("status", "--json").json["min_failure_cases"] == 8


def test_the_data_directory_is_where_it_is_said_to_be(call) -> None:
    assert call("--data-dir", "elsewhere", "status", "--json").json["log"] == "elsewhere/failures/failures.jsonl"


def test_configuration_and_data_directory_can_be_said_by_the_environment_and_a_flag_wins(call, monkeypatch) -> None:
    for number in (7, 8):
        Path(f"{number}.yaml").write_text(f"training: {{min_failure_cases: {number}}}\n")
    monkeypatch.setenv("DRAFTLOOP_CONFIG", "7.yaml")
    monkeypatch.setenv("DRAFTLOOP_DATA_DIR", "there")
    found = call("status", "--json").json
    assert (found["min_failure_cases"], found["log"]) == (7, "there/failures/failures.jsonl")
    found = call("-c", "8.yaml", "--data-dir", "here", "status", "--json").json
    assert (found["min_failure_cases"], found["log"]) == (8, "here/failures/failures.jsonl")


def without_installed_packages_of_ours(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python with the dependencies but without what .pth files add, an editable draftloop among it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONPATH"] = sysconfig.get_paths()["purelib"]
    return subprocess.run(
        [sys.executable, "-S", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=HANGS
    )


def test_a_plain_checkout_runs_uninstalled(root: Path, tmp_path: Path) -> None:
    absent = without_installed_packages_of_ours("-c", "import draftloop", cwd=tmp_path)
    assert "No module named 'draftloop'" in absent.stderr  # or the rest would prove nothing
    found = without_installed_packages_of_ours("-m", "src.main", "--help", cwd=root)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("Usage: draftloop [OPTIONS] COMMAND")


def test_what_a_file_says_does_nothing_to_the_terminal_that_an_error_is_shown_on(call, tmp_path: Path) -> None:
    write_pair(tmp_path / "pair")
    edit_json(tmp_path / "pair" / "target" / "config.json", rope_scaling={"type": "\x1b]0;evil\x07\x9b31m"})
    found = call("generate", "the target", "--model", tmp_path / "pair" / "target")
    assert found.code == 2
    assert "evil" in found.err
    assert found.err.removesuffix("\n").isprintable()
