"""A stdout that is full, closed or left by its reader: one line, and the exit code of what was done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders import write_adapter
from mortal import environment

from draftloop.config import Models
from draftloop.registry.registry import Registry

START = "import sys; from draftloop.__main__ import main; sys.argv[0] = 'draftloop'; main()"
FULL = Path("/dev/full")
full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")

PRINTING = [
    ["--help"],
    ["--version"],
    ["status"],
    ["status", "--json"],
    ["adapters", "list"],
    ["adapters", "show", "v0001"],
    ["schedule", "show", "--kind", "cron"],
]
DOING = {
    ("adapters", "promote", "v0001"): 0,
    ("adapters", "rollback", "--json"): 0,
    ("adapters", "prune"): 0,
    ("retrain",): 10,
}


@pytest.fixture(autouse=True)
def registry(_place: None) -> Registry:
    found = Registry(Path("data/adapters"))
    for _ in range(2):
        found.create(write_adapter, {})
    found.promote("v0002")
    return found


def run(arguments: list[str], stdout: str) -> subprocess.CompletedProcess[str]:
    """The command, with a stdout that is `full`, `closed` or `left`."""
    command = [sys.executable, "-c", START, *arguments]
    if stdout == "closed":
        command = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command]
        return subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    if stdout == "full":
        with FULL.open("w") as file:
            return subprocess.run(
                command, stdout=file, stderr=subprocess.PIPE, text=True, env=environment(), check=False
            )
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    finally:
        os.close(write)


SAID = {
    "full": "note: not everything was printed, stdout: No space left on device",
    "closed": "note: not everything was printed, stdout is closed",
    "left": "note: stdout was closed by its reader before everything was printed",
}
STREAMS = [pytest.param("full", marks=full), "closed", "left"]


@pytest.mark.parametrize("stdout", STREAMS)
@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
@pytest.mark.some(6)
def test_what_only_prints_has_failed_unless_its_reader_had_seen_enough(arguments: list[str], stdout: str) -> None:
    found = run(arguments, stdout)
    assert found.stderr.splitlines()[-1] == SAID[stdout]
    assert found.stderr.count("stdout") == 1
    assert found.returncode == (0 if stdout == "left" else 1)


@pytest.mark.parametrize("stdout", STREAMS)
@pytest.mark.parametrize("arguments", DOING, ids=" ".join)
@pytest.mark.some(4)
def test_what_does_something_ends_with_the_code_of_that(
    arguments: tuple[str, ...], stdout: str, registry: Registry
) -> None:
    found = run(list(arguments), stdout)
    assert found.stderr.splitlines()[-1].startswith(SAID[stdout])
    assert found.returncode == DOING[arguments]
    if "promote" in arguments:
        assert registry.champion() == "v0001"


@full
def test_a_dry_run_only_prints() -> None:
    assert run(["adapters", "prune", "--dry-run"], "full").returncode == 1
    assert run(["schedule", "install", "--kind", "cron"], "full").returncode == 1


@full
def test_an_error_keeps_its_code_where_its_json_is_lost() -> None:
    found = run(["adapters", "show", "v0009", "--json"], "full")
    assert found.returncode == 2
    assert found.stderr.startswith("error: No adapter v0009")


def test_a_closed_stdout_that_nothing_is_printed_to_is_no_matter() -> None:
    found = run(["nothing"], "closed")
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert found.stderr.startswith("error: No such command")


@pytest.mark.parametrize("redirection", ["2>&-", pytest.param("2>/dev/full", marks=full)])
def test_a_stderr_that_takes_nothing_changes_nothing(redirection: str) -> None:
    command = ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-c", START, "retrain", "--json"]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment(), check=False)
    assert found.returncode == 10
    assert '"status": "nothing_to_do"' in found.stdout


def test_generate_stops_when_its_reader_has_gone(small_models: Models) -> None:
    models = ["--model", small_models.target, "--draft-model", small_models.draft]
    found = run(
        ["generate", "hello", "--max-tokens", "40", "--num-draft-tokens", "2", "--adapter", "none", *models], "left"
    )
    assert found.returncode == 0
    where, said = found.stderr.splitlines()  # and not how many tokens there were
    assert where.startswith("no configuration here")
    assert said == SAID["left"]


def test_a_training_whose_progress_nobody_reads_is_trained_to_its_end(call_with_pair, small_models: Models) -> None:
    prompts = [flag for i in range(4) for flag in ("-p", f"prompt {'ab' * i}")]
    assert call_with_pair("collect-data", *prompts, "--max-tokens", "8", "--adapter", "none").code == 0
    shape = ["--epochs", "1", "--answers", "0", "--proposals", "0", "--rank", "2", "--from-base"]
    models = ["--model", small_models.target, "--draft-model", small_models.draft]
    command = ["/bin/sh", "-c", 'exec "$@" 2>&1', "sh", sys.executable, "-c", START, "train", *shape, *models]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, env=environment(), check=False)
    os.close(write)
    assert done.returncode == 0
    assert Path("data/adapters/v0003").is_dir()
