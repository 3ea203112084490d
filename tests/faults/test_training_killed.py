"""A training killed by SIGKILL, at any border between steps and at any file operation, goes on to the same bits.

It dies in a process of its own and is resumed in this one.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import orjson
import pytest
from builders import NO_SYNC, CountingFiles, NoSync
from fault_table import Row
from mortal import Board, environment, kind, python, was_killed
from workshop import Workshop, records_of

from draftloop.models import adapter as lora
from draftloop.training.step import Learner, under

pytestmark = [pytest.mark.row("kill during training"), pytest.mark.usefixtures("module_on_the_cpu")]

EVERYTHING = {
    "epochs": 3,
    "batch_size": 3,
    "gradient_accumulation_steps": 3,
    "replay_ratio": 0.3,
    "learning_rate": 5e-3,
    "warmup_steps": 2,
    "steps_per_eval": 2,
    "save_every": 2,
    "answers": 1,
    "proposals": 2,
    "steps_per_report": 1,
    "lora": {"rank": 3, "dropout": 0.2},
}
"""Dropout, accumulation, replay, warm-up, decay, new texts; three steps an epoch, the third of one micro-batch."""

VICTIM = """
import json, sys
from pathlib import Path
from draftloop import prepare_process
prepare_process()
import mlx.core as mx
from mortal import Board, MortalFiles, die
from workshop import Workshop

mx.set_default_device(mx.cpu)
root, settings, border, die_at, written = Path(sys.argv[1]), json.loads(sys.argv[2]), *map(float, sys.argv[3:])
files = MortalFiles(Board(root.with_suffix(".board")), int(die_at), written)
Workshop(root, settings, files).train(on_step=lambda done, _steps: die() if done == border else None)
"""


class KeptCheckpoints(NoSync):
    """Files that keep a copy of the checkpoints which a finished run removes."""

    def remove(self, path: Path) -> None:
        if path.name == "checkpoints":
            shutil.copytree(path, path.with_name("kept"))
        super().remove(path)


@dataclass(frozen=True)
class End:
    """All that a run leaves: the version's weights, the last checkpoint, and what every step and validation said."""

    weights: bytes
    tensors: dict[str, bytes]
    progress: dict[str, Any]
    said: list[dict[str, Any]]


def workshop(root: Path, settings: dict[str, Any]) -> Workshop:
    shop = Workshop(root, settings, NO_SYNC)
    shop.write(records_of(shop.pair, 14))
    shop.write(records_of(shop.pair, 3, split="validation"))
    return shop


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def end_of(shop: Workshop, run: str) -> End:
    (kept,) = (shop.runs / run / "kept").glob("c*")
    tensors = mx.load(str(kept / "tensors.safetensors"))
    rows = map(orjson.loads, (shop.runs / run / "metrics.jsonl").read_bytes().splitlines())
    return End(
        weights=(shop.registry.root / "v0001" / "adapters.safetensors").read_bytes(),
        tensors={name: bytes(memoryview(value)) for name, value in tensors.items()},
        progress=without(orjson.loads((kept / "progress.json").read_bytes()), "seconds", "pace", "sha256", "fit"),
        said=[without(row, "seconds", "tokens_per_second", "peak_memory_gb") for row in rows],
    )


def straight(root: Path, settings: dict[str, Any], files: CountingFiles | None = None) -> End:
    """A training that nobody disturbs."""
    workshop(root, settings)
    shop = Workshop(root, settings, KeptCheckpoints())
    result = shop.train()
    found = end_of(shop, result.run)
    assert {name.split(".")[0] for name in found.tensors} == {"adapter", "optimizer", "best", "random", "accepted"}
    assert result.best_step
    return found


def kill(root: Path, settings: dict[str, Any], border: int = -1, die_at: int = 0, written: float = 0.0) -> str:
    """Train in another process, which dies; returns the operation that was struck."""
    workshop(root, settings)
    arguments = (root, orjson.dumps(settings).decode(), border, die_at, written)
    command = python("-c", VICTIM, *arguments)
    done = subprocess.run(command, env=environment(), check=False, capture_output=True, text=True)
    assert was_killed(done), f"border {border}, operation {die_at}: it lived on"
    return kind(Board(root.with_suffix(".board")).text)


def go_on(root: Path, settings: dict[str, Any]) -> End | None:
    """What a person does after a kill: resume where there is a checkpoint, else train. None: it had finished."""
    shop = Workshop(root, settings, KeptCheckpoints())
    run = shop.runs / "r0001"
    if (run / "result.json").exists():
        return None
    result = shop.resume() if (run / "checkpoints" / "latest.json").exists() else shop.train()
    return end_of(shop, result.run)


def all_of(jobs: Iterable[tuple[Path, dict[str, Any], int, int, float]]) -> list[str]:
    """Kill two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda job: kill(*job), jobs))


@pytest.mark.parametrize(("micro_batches", "few"), [(3, [1, 3, 5]), (1, [4, 9])])
@pytest.mark.some(1)
def test_a_training_killed_after_any_step_ends_in_the_same_bits(
    tmp_path: Path, row: Row, micro_batches: int, few: list[int]
) -> None:
    """Of one micro-batch a step is evaluated at once, and the arrays of the next one are made meanwhile."""
    settings = {**EVERYTHING, "gradient_accumulation_steps": micro_batches, "epochs": row.count(2, 8)}
    expected = straight(tmp_path / "straight", settings)
    steps = expected.progress["step"]
    borders = list(range(steps + 1)) if row.full else few
    all_of([(tmp_path / str(border), settings, border, 0, 0.0) for border in borders])
    for border in borders:
        assert go_on(tmp_path / str(border), settings) == expected, border
    row.did(len(borders), f"kills after a step of {steps}")


def test_the_comparison_would_notice_a_resumption_without_the_optimizers_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, _steps: int) -> None:
        if done == 5:
            raise KeyError

    settings = {**EVERYTHING, "epochs": 2}
    expected = straight(tmp_path / "straight", settings)
    with pytest.raises(KeyError):
        workshop(tmp_path / "stopped", settings).train(on_step=stop)
    monkeypatch.setattr(
        Learner, "restore", lambda self, state: lora.load_parameters(self.draft, under("adapter.", state))
    )
    found = go_on(tmp_path / "stopped", settings)
    assert found is not None
    assert found.weights != expected.weights


def test_a_training_killed_at_any_file_operation_ends_in_the_same_bits(tmp_path: Path, row: Row) -> None:
    settings = {**EVERYTHING, "epochs": 1}
    expected = straight(tmp_path / "straight", settings)
    counted = CountingFiles()
    shop = workshop(tmp_path / "counted", settings)
    Workshop(shop.root, settings, counted).train()
    strikes = _strikes(counted.names, row)
    jobs = [(tmp_path / str(number), settings, -1, at, share) for number, (at, share) in enumerate(strikes)]
    struck = all_of(jobs)
    for (root, *_), (at, _), name in zip(jobs, strikes, struck, strict=True):
        assert name == counted.names[at - 1]
        found = go_on(root, settings)
        shop = Workshop(root, settings)
        assert shop.registry.versions() == ["v0001"]
        shop.registry.verify(shop.registry.root / "v0001")
        assert (shop.registry.root / "v0001" / "adapters.safetensors").read_bytes() == expected.weights
        assert found in (None, expected), (at, name)
        shutil.rmtree(root)
    row.did(len(struck), "kills in a file operation")
    row.struck.update(struck)


def _strikes(names: list[str], row: Row) -> list[tuple[int, float]]:
    """Where to kill, and with which share of the bytes written: everywhere, and each kind of operation ten times."""
    choose = random.Random(5)
    if not row.full:
        return [(choose.choice([i for i, found in enumerate(names, 1) if found == name]), 0.5) for name in ("produce",)]
    places = list(range(1, len(names) + 1))
    for name in sorted(set(names)):
        those = [at for at in places if names[at - 1] == name]
        places += [choose.choice(those) for _ in range(10 - len(those))]
    return [(at, choose.random()) for at in sorted(places)]
