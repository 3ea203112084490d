"""A full disk: a clear line, everything earlier byte for byte as it was, and the next run succeeds.

Full for real by a limit on the size of files, at every byte; and at the n-th operation, for every n.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from builders import NO_SYNC, CountingFiles, failing_files, make_record, write_adapter
from fault_table import Row
from log_files import broken, file_size_limit, filled, read
from mortal import environment, python
from workshop import Workshop, records_of

from draftloop.config import Models
from draftloop.data.log import FailureLog
from draftloop.data.record_lines import to_line
from draftloop.errors import DraftloopError, StoreError
from draftloop.models import adapter as lora
from draftloop.registry.registry import Registry
from draftloop.store.files import Files
from draftloop.training.checkpoints import Checkpoints
from draftloop.training.run import RunDirectory

pytestmark = pytest.mark.row("disk full, short write")

Snapshot = dict[str, bytes]


def snapshot(root: Path) -> Snapshot:
    """Every file but locks and what nobody has published yet."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    named = {str(path.relative_to(root)): path.read_bytes() for path in files}
    return {name: content for name, content in named.items() if ".tmp-" not in name}


def one_line(error: DraftloopError) -> str:
    message = str(error)
    assert "\n" not in message
    assert ".." not in message
    return message


# -- the log ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_at_any_byte_of_a_record_leaves_the_log_as_it_was(tmp_path: Path, row: Row) -> None:
    path = tmp_path / "failures.jsonl"
    kept = filled(path, 2)
    before = path.read_bytes()
    record = make_record()
    length = len(to_line(record))
    rooms = {0, 1, length - 2, length - 1}.union(range(0, length, row.count(17, 1)))
    for room in rooms:
        with file_size_limit(len(before) + room), pytest.raises(StoreError, match="could not be written") as caught:
            FailureLog(path, NO_SYNC).append(record)
        one_line(caught.value)
        assert path.read_bytes() == before
    with file_size_limit(len(before) + length):
        new = FailureLog(path).append(record)
    assert read(path) == [*kept, new]
    row.did(len(rooms), "sizes of a log")


def test_a_short_write_that_cannot_even_be_taken_back_is_repaired_by_the_next_append(tmp_path: Path) -> None:
    class Stubborn(Files):
        def write(self, descriptor: int, data: bytes) -> int:
            return super().write(descriptor, data[:50])

        def truncate(self, descriptor: int, size: int) -> None:
            raise OSError(5, os.strerror(5))

    path = tmp_path / "failures.jsonl"
    kept = filled(path, 2)
    with pytest.raises(StoreError, match="only 50 of"):
        FailureLog(path, Stubborn()).append(make_record())
    new = FailureLog(path).append(make_record())
    assert read(path) == [*kept, new]
    assert len(broken(path).read_bytes()) == 51


# -- every operation of every place that writes -----------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Something that writes: how it comes to be there, and what is done to it through `files`."""

    prepare: Callable[[Path], object]
    work: Callable[[Path, Files], object]
    least: int
    """operations that the work takes, or the test would not reach what it should"""


def tensors(value: float) -> dict[str, mx.array]:
    return {"adapter.a": mx.full((3, 2), value)}


def two_versions(root: Path) -> None:
    registry = Registry(root, NO_SYNC)
    for value in (0.0, 1.0):
        registry.create(lambda path, value=value: write_adapter(path, value), {})  # type: ignore[misc]
    registry.promote("v0001")


def begun_run(root: Path) -> RunDirectory:
    run = RunDirectory.create(root, NO_SYNC)
    run.describe({"run": run.id}, {})
    run.checkpoints.save(tensors(1.0), {"step": 1})
    return run


PLACES = {
    "log": Place(lambda root: filled(root / "f.jsonl", 2), lambda root, files: append(root, files), 4),
    "version": Place(two_versions, lambda root, files: create(root, files), 25),
    "promotion": Place(two_versions, lambda root, files: Registry(root, files).promote("v0002"), 10),
    "checkpoint": Place(
        lambda root: Checkpoints(root, NO_SYNC).save(tensors(1.0), {"step": 1}),
        lambda root, files: Checkpoints(root, files).save(tensors(2.0), {"step": 2}),
        20,
    ),
    "run directory": Place(begun_run, lambda root, files: RunDirectory.create(root, files).describe({}, {}), 14),
    "finished run": Place(begun_run, lambda root, files: RunDirectory(root / "r0001", files).finish({}), 7),
}


def append(root: Path, files: Files) -> None:
    FailureLog(root / "f.jsonl", files).append(make_record(id="f" * 32))


def create(root: Path, files: Files) -> None:
    Registry(root, files).create(lambda path: write_adapter(path, 2.0, files), {"created": 1.0})


def is_earlier_or_done(before: bytes, now: bytes | None, done: bytes | None) -> bool:
    """Of one earlier file: untouched, or what the work would have made of it, or whole lines were added to it."""
    added = now is not None and now.startswith(before) and now.endswith(b"\n")
    return now in (before, done) or added


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("name", PLACES)
def test_a_failure_of_any_operation_leaves_every_earlier_file_as_it_was(
    tmp_path: Path, name: str, for_good: bool, row: Row
) -> None:
    place, counted = PLACES[name], CountingFiles()
    place.prepare(tmp_path / "undisturbed")
    place.work(tmp_path / "undisturbed", counted)
    done = snapshot(tmp_path / "undisturbed")
    assert len(counted.names) >= place.least
    for at in range(1, len(counted.names) + 1):
        root = tmp_path / str(at)
        place.prepare(root)
        before = snapshot(root)
        with pytest.raises(StoreError, match="No space left on device") as caught:
            place.work(root, failing_files(at, for_good))
        one_line(caught.value)
        now = snapshot(root)
        assert [file for file in before if not is_earlier_or_done(before[file], now.get(file), done.get(file))] == []
        place.work(root, NO_SYNC)
    row.did(len(counted.names), "failures of a single operation")
    row.struck.update(counted.names)


# -- a whole training -------------------------------------------------------------------------------------------------

QUICK = {"epochs": 1, "learning_rate": 5e-3, "batch_size": 4, "save_every": 2, "steps_per_eval": 2, "replay_ratio": 0.0}


def workshop(root: Path, files: Files = NO_SYNC) -> Workshop:
    shop = Workshop(root, QUICK, files)
    shop.write(records_of(shop.pair, 10))
    shop.write(records_of(shop.pair, 2, split="validation"))
    return shop


def weights(path: str | Path) -> bytes:
    return (Path(path) / "adapters.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], bytes]:
    """The operations of a training, and the weights that come out."""
    files = CountingFiles()
    result = workshop(tmp_path_factory.mktemp("undisturbed"), files).train()
    return files.names, weights(result.path)


@pytest.mark.parametrize("for_good", [False, True])
def test_a_training_that_fails_at_any_operation_harms_nothing_earlier_and_the_next_one_succeeds(
    tmp_path: Path, undisturbed: tuple[list[str], bytes], for_good: bool, row: Row
) -> None:
    names, expected = undisturbed
    assert {"produce", "rename", "sync", "make_private", "remove"} <= set(names)
    every = range(1, len(names) + 1)
    steps = every if row.full else random.Random(for_good).sample(every, 3)
    for at in steps:
        root = tmp_path / str(at)
        workshop(root)
        log = snapshot(root)
        with pytest.raises(StoreError, match="No space left on device") as caught:
            Workshop(root, QUICK, failing_files(at, for_good)).train()
        one_line(caught.value)
        shop = Workshop(root, QUICK, NO_SYNC)
        assert log.items() <= snapshot(root).items()
        for name in shop.registry.versions():
            shop.registry.verify(shop.registry.root / name)
        finished = any(shop.runs.glob("*/result.json"))
        resumable = any(shop.runs.glob("*/checkpoints/latest.json")) and not finished
        result = shop.resume() if resumable else shop.train()
        assert weights(result.path) == expected
        row.struck[names[at - 1]] += 1
    row.did(len(steps), "trainings that failed at one operation")


def test_a_disk_that_fills_at_any_size_of_an_adapter_leaves_the_versions_as_they_were(tmp_path: Path, row: Row) -> None:
    shop = workshop(tmp_path)
    size = len(weights(shop.train().path))
    shop.registry.promote("v0001")
    before = snapshot(tmp_path)
    draft = shop.pair.draft
    choose, sizes = random.Random(2), row.count(10, 100)
    for _ in range(sizes):
        with file_size_limit(choose.randrange(size)), pytest.raises(StoreError, match="could not be written") as caught:
            shop.registry.create(lambda path: lora.save_adapter(draft, path), {})
        one_line(caught.value)
        assert snapshot(tmp_path) == before
    made = shop.registry.create(lambda path: lora.save_adapter(draft, path), {})
    assert weights(made.path) == weights(shop.registry.root / "v0001")
    row.did(sizes, "sizes of an adapter")


# -- the command ------------------------------------------------------------------------------------------------------


PROGRAM = """
import resource
from draftloop.cli import run_and_exit
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
run_and_exit()
"""


def test_the_command_ends_with_code_1_and_one_line_and_works_again_when_there_is_room(
    tmp_path: Path,
    small_models: Models,
    small_pair: Any,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    row: Row,
) -> None:
    monkeypatch.setenv("DRAFTLOOP_TRAINING_SPOT_CHECK_SHARE", "0")  # the records' outputs are random
    log = FailureLog(tmp_path / "data" / "failures" / "failures.jsonl")
    for record in records_of(small_pair, 6):
        log.append(record)
    before = snapshot(tmp_path)
    flags = ["--model", small_models.target, "--draft-model", small_models.draft]
    training = ["--data-dir", str(tmp_path / "data"), "train", "--epochs", "1", "--rank", "4", *flags]
    refused = subprocess.run(
        python("-c", PROGRAM, *training), env=environment(), cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert refused.stdout == ""
    errors = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in refused.stderr
    assert len(errors) == 1
    assert errors[0] == refused.stderr.splitlines()[-1]
    assert "could not be written" in errors[0]
    assert before.items() <= snapshot(tmp_path).items()
    assert command(*training).code == 0
    row.did(1, "command on a full disk")
