"""`retrain` from the shell: exit codes, a dry run that changes nothing, a lock that is tried before MLX is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mortal import HANGS
from shop import PROMPTS

from draftloop.config import Models
from draftloop.data_directory import DataDirectory

ROOT = Path(__file__).parents[2]
SETTINGS = """
training: {epochs: 8, learning_rate: 0.01, min_failure_cases: 10, lora: {rank: 8}}
speculative: {max_tokens: 16}
gate: {alpha: 0.3, max_drop_share: 0.1, live_prompts: 1, min_heldout_prompts: 6}
retrain: {niceness: 0, min_interval_minutes: 0}
"""


@pytest.fixture
def settings(_place: None) -> list[str]:
    Path("settings.yaml").write_text(SETTINGS)
    return ["-c", "settings.yaml"]


def test_nothing_logged_is_nothing_to_do_and_leaves_one_line(call_with_pair) -> None:
    found = call_with_pair("retrain", "--json")
    assert (found.code, found.json["status"]) == (10, "nothing_to_do")
    assert found.json["why"] == "no failure to train on yet; `collect-data` logs them"
    (line,) = DataDirectory(Path("data")).audit.entries()
    assert line["outcome"] == "nothing"
    assert not Path("data/adapters").exists()


def test_from_prompts_to_a_verdict(call_with_pair, call, settings: list[str]) -> None:
    prompts = [flag for prompt in PROMPTS[:70] for flag in ("-p", prompt.text)]
    assert call_with_pair(*settings, "collect-data", *prompts).code == 0
    dry = call_with_pair(*settings, "retrain", "--dry-run")
    assert dry.code == 0
    assert dry.out.startswith("would train, then gate the candidate: ")
    assert not Path("data/runs").exists()
    found = call_with_pair(*settings, "retrain", "--json")
    assert found.code in (0, 11), found.err
    values = found.json
    assert (values["version"], values["steps"], values["trained"]) == ("v0001", ["train", "gate"], True)
    assert values["status"] == {0: "ok", 11: "refused"}[found.code]
    assert values["numbers"]["p_value"] is not None
    again = call_with_pair(*settings, "retrain")
    assert again.code == 10
    assert "0 unused failures of 10" in again.out
    assert "promoted" in call("adapters", "list").out or "refused" in call("adapters", "list").out


def test_a_dry_run_promises_no_gate_where_prompts_are_too_few(call_with_pair, settings: list[str]) -> None:
    prompts = [flag for prompt in PROMPTS[:14] for flag in ("-p", prompt.text)]
    assert call_with_pair(*settings, "collect-data", *prompts).code == 0
    dry = call_with_pair(*settings, "retrain", "--dry-run")
    assert re.match(r"would train a candidate, which then waits for the gate \(0 of 6 held-out prompts\): ", dry.out), (
        dry.out
    )


def test_a_waiting_candidate_is_inconclusive_in_a_dry_run_too(call_with_pair) -> None:
    from builders import write_adapter

    DataDirectory(Path("data")).registry.create(write_adapter, {})
    found = call_with_pair("retrain", "--dry-run", "--json")
    assert (found.code, found.json["status"], found.json["action"]) == (12, "inconclusive", "wait")
    assert call_with_pair("retrain").code == 12


def test_another_holder_of_the_lock_is_named_before_mlx_is_imported(small_models: Models, tmp_path: Path) -> None:
    """In a process of its own, in which MLX cannot be imported at all."""
    program = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('mlx', 'mlx_lm', 'transformers'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from draftloop.cli import run_and_exit\n"
        "run_and_exit(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, "--data-dir", str(tmp_path / "data"), "retrain", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    data = DataDirectory(tmp_path / "data")
    with data.training_lock():
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=HANGS, check=False)
    assert done.returncode == 13, done.stderr
    assert '"status": "locked"' in done.stdout
    assert f"is held by process {os.getpid()}" in done.stderr
    after = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=HANGS, check=False)
    assert after.returncode == 10, after.stderr  # nothing to do needs no MLX either


def test_train_and_retrain_keep_out_of_each_others_way(call_with_pair) -> None:
    with DataDirectory(Path("data")).training_lock():
        for command in ("train", "retrain"):
            found = call_with_pair(command)
            assert (found.code, found.err.count("\n")) == (13, 1)
            assert found.err.startswith("locked: ")
