"""What a data directory holds is counted from its log and its versions, without a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import make_record, write_adapter

from draftloop.overview import overview
from draftloop.registry import Registry
from draftloop.store.log import FailureLog


@pytest.fixture
def log(tmp_path: Path) -> FailureLog:
    return FailureLog(tmp_path / "failures" / "failures.jsonl")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "adapters")


def test_an_empty_directory_is_all_zeros_and_stays_empty(log: FailureLog, registry: Registry, tmp_path: Path) -> None:
    found = overview(log, registry, 50)
    assert {found[key] for key in ("generations", "failures", "failures_new", "failures_used", "log_bytes")} == {0}
    assert (found["splits"], found["sources"], found["adapters"], found["damage"]) == ({}, {}, [], [])
    assert (found["champion"], found["previous"], found["min_failure_cases"]) == (None, None, 50)
    assert list(tmp_path.iterdir()) == []


def test_generations_failures_splits_and_sources_are_counted(log: FailureLog, registry: Registry) -> None:
    agreed = {"target_output": (5, 6), "draft_output": (5, 6)}
    for i in range(40):
        log.append(make_record(prompt=f"prompt {'x' * i}", source="a" if i % 2 else "b", **(agreed if i < 8 else {})))
    found, records = overview(log, registry, 50), list(log.records())
    assert (found["generations"], found["failures"]) == (40, 32)
    assert found["sources"] == {"a": 20, "b": 20}
    assert sum(found["splits"].values()) == 40
    assert found["splits"].keys() == {"train", "validation", "heldout"}
    trainable = [record for record in records if record.is_failure and record.split == "train"]
    assert found["failures_new"] == len(trainable) < 32
    assert found["failures_held_out"] == 32 - len(trainable)
    assert found["log_bytes"] == log.path.stat().st_size


def test_a_failure_that_a_version_was_trained_on_is_used(log: FailureLog, registry: Registry) -> None:
    records = [log.append(make_record(prompt=f"prompt {'x' * i}")) for i in range(5)]
    for ids in ([records[0].id], [records[0].id, records[3].id]):
        registry.create(write_adapter, {"record_ids": ids})
    registry.promote("v0002")
    found = overview(log, registry, 50)
    assert (found["failures"], found["failures_used"], found["failures_new"]) == (5, 2, 3)
    assert found["failures_held_out"] == 0


def test_a_generation_that_was_logged_twice_counts_once(log: FailureLog, registry: Registry) -> None:
    record = make_record()
    log.append(record)
    log.append(record)
    assert overview(log, registry, 50)["failures"] == 1


def test_the_versions_and_the_pointer_are_named(log: FailureLog, registry: Registry) -> None:
    for _ in range(2):
        registry.create(write_adapter, {})
    registry.promote("v0002")
    found = overview(log, registry, 50)
    assert (found["adapters"], found["champion"], found["previous"]) == (["v0001", "v0002"], "v0002", None)


def test_a_damaged_line_is_named_and_the_rest_counted(log: FailureLog, registry: Registry) -> None:
    for i in range(3):
        log.append(make_record(prompt=f"prompt {'x' * i}"))
    lines = log.path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"rejection", b"rejectioM")
    log.path.write_bytes(b"\n".join(lines))
    found = overview(log, registry, 50)
    assert found["generations"] == 2
    (damage,) = found["damage"]
    assert damage.startswith("line 2: ")
