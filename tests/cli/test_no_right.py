"""`chmod 000`: every reader says "permission denied" and the path, calls nothing damaged, and gives nothing up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from builders import make_record, write_adapter
from rights import of_an_ordinary_user

from draftloop import reference
from draftloop.config import Gate
from draftloop.data.records import BlobRef, PairId
from draftloop.data_directory import DataDirectory
from draftloop.decoding.draft_length import LatencyProfile
from draftloop.errors import AccessDenied
from draftloop.evaluation.latency_profiles import LatencyProfiles, StoredProfile
from draftloop.models.fingerprints import fingerprints
from draftloop.training.run import RunDirectory

PAIR = PairId(fingerprints(reference.TARGET).model, fingerprints(reference.DRAFT).model, "c" * 64)


@pytest.fixture
def data(_place: None) -> Iterator[DataDirectory]:
    """A record of the embedded pair, three versions, verdicts, an audit, costs and a run that was cut off."""
    found = DataDirectory(Path("data"))
    found.log.append(make_record(pair=PAIR))
    found.blobs.append(b"what the target said")
    found.replay.remember([make_record(pair=PAIR)], 0)
    for number in range(3):
        name = found.registry.create(write_adapter, {"record_ids": [f"{number:032x}"]}).name
        if number < 2:
            found.registry.promote(name)
            found.verdicts.give_by_hand(name, None, number, "better")
    found.promotion_watch.begin(found.registry.pointer(), [], Gate())
    found.names.keep(fingerprints(reference.TARGET))
    found.audit.append({"when": 0.0, "outcome": "nothing", "why": "x"})
    found.costs.keep("key", StoredProfile(LatencyProfile(1.0, (1.0, 1.0))))
    run = RunDirectory.create(found.runs)
    run.describe({"purpose": "retrain", "config": {"models": {}}}, {})
    run.keep_samples(0, [])
    run.checkpoints.save({"a": mx.array(1.0)}, {"step": 1})
    yield found
    for path in found.root.rglob("*"):
        path.chmod(0o700)


READ_BY_STATUS = [
    "failures/failures.jsonl",
    "replay/replay.jsonl",
    "adapters",
    "adapters/pointer.json",
    "adapters/v0001/manifest.json",
    "adapters/v0001/adapters.safetensors",
    "adapters/v0001/adapter_config.json",
    "adapters/v0001",
    "adapters/v0002/adapters.safetensors",
    "adapters/v0003/manifest.json",
    "adapters/verdicts/v0001.json",
    "adapters/watching/2.json",
    "models.json",
    "runs/audit.jsonl",
    "runs/r0001/run.yaml",
]


@pytest.mark.parametrize("name", READ_BY_STATUS)
def test_status_says_permission_denied_and_where(data: DataDirectory, call, name: str) -> None:
    (data.root / name).chmod(0)
    with of_an_ordinary_user():
        found = call("status")
    assert f"permission denied: {data.root / name}" in found.err
    assert "damaged" not in (found.out + found.err).replace("Nothing is damaged", "")
    assert "Delete" not in found.err
    assert found.err.count("permission denied") == 1


@pytest.mark.parametrize(
    "name", ["adapters/v0003/manifest.json", "adapters/v0002/manifest.json", "adapters/verdicts/v0001.json"]
)
def test_retrain_goes_no_step_where_it_may_not_read_what_was_decided(data: DataDirectory, call, name: str) -> None:
    before = sorted(data.root.rglob("*"))
    (data.root / name).chmod(0)
    with of_an_ordinary_user():
        found = call("retrain", "--json")
    assert (found.code, found.json["status"]) == (1, "error")
    assert f"permission denied: {data.root / name}" in found.err
    assert [path for path in before if not path.exists()] == []


def test_a_candidate_is_not_discarded_for_want_of_a_right(data: DataDirectory) -> None:
    from draftloop.retraining.gate_step import _without_scores

    (data.registry.root / "v0003" / "adapters.safetensors").chmod(0)
    with of_an_ordinary_user(), pytest.raises(AccessDenied, match=r"v0003/adapters\.safetensors"):
        _without_scores(data.registry, "v0003")


def test_old_weights_are_pruned_but_for_a_version_whose_manifest_may_not_be_read(data: DataDirectory, call) -> None:
    data.registry.promote("v0003")
    (data.registry.root / "v0001" / "manifest.json").chmod(0)
    with of_an_ordinary_user():
        assert call("adapters", "prune", "--keep", "1").code == 0
    assert data.registry.versions() == ["v0001", "v0002", "v0003"]


Read = Callable[[DataDirectory, RunDirectory], object]
READERS: dict[str, Read] = {
    "failures/failures.jsonl": lambda data, _: list(data.log.records()),
    "failures/teacher.bin": lambda data, _: data.blobs.read(BlobRef(0, 20, "0" * 16)),
    "replay/replay.jsonl": lambda data, _: data.replay.records(),
    "adapters": lambda data, _: data.registry.versions(),
    "adapters/pointer.json": lambda data, _: data.registry.pointer(),
    "adapters/v0001/manifest.json": lambda data, _: data.registry.verify(data.registry.root / "v0001"),
    "adapters/v0001/adapters.safetensors": lambda data, _: data.registry.verify(data.registry.root / "v0001"),
    "adapters/v0002/adapter_config.json": lambda data, _: data.registry.resolve("champion"),
    "adapters/verdicts/v0001.json": lambda data, _: data.verdicts.of("v0001"),
    "runs/audit.jsonl": lambda data, _: data.audit.entries(),
    "runs/r0001/run.yaml": lambda _, run: run.config(),
    "runs/r0001/material.json": lambda _, run: run.mixture(),
    "runs/r0001/texts-0.json": lambda _, run: run.samples(0),
    "runs/r0001/checkpoints": lambda _, run: run.note_resumption(),
    "runs/r0001/checkpoints/c0001/tensors.safetensors": lambda _, run: run.checkpoints.load(),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_tells_a_missing_right_from_damage(data: DataDirectory, name: str) -> None:
    path = data.root / name
    path.chmod(0)
    with of_an_ordinary_user(), pytest.raises(AccessDenied) as caught:
        READERS[name](DataDirectory(data.root), RunDirectory(data.runs / "r0001"))
    assert str(caught.value).startswith(f"permission denied: {path}")


def test_costs_that_may_not_be_read_are_not_written_over(data: DataDirectory) -> None:
    path = data.root / "costs.json"
    before = path.read_bytes()
    path.chmod(0)
    costs = LatencyProfiles(path)
    with of_an_ordinary_user():
        assert costs.of("key") is None
        with pytest.raises(PermissionError):
            costs.keep("another", StoredProfile(LatencyProfile(1.0, (1.0, 1.0))))
    path.chmod(0o600)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "data/closed.txt", "status"],
        ["collect-data", "--prompts-file", "data/closed.txt"],
        ["status", "--model", "data/closed/model"],
        ["retrain", "--model", "data/closed/model"],
    ],
    ids=" ".join,
)
def test_a_configuration_prompts_and_a_model_that_may_not_be_read_are_named(
    data: DataDirectory, call, arguments: list[str]
) -> None:
    (data.root / "closed.txt").write_text("")
    (data.root / "closed" / "model").mkdir(parents=True)
    for name in ("closed.txt", "closed"):
        (data.root / name).chmod(0)
    with of_an_ordinary_user():
        found = call(*arguments)
    assert found.code in (1, 2)
    assert "permission denied" in found.err.lower()
    assert "data/closed" in found.err
    assert found.err.count("\n") == 1
