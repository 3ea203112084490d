"""What a data directory holds is counted from its log, its versions and their verdicts, without a model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from builders import make_record, write_adapter

from draftloop.data.records import PairId
from draftloop.data_directory import DataDirectory
from draftloop.status import read_overview


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    return DataDirectory(tmp_path / "data")


def judge(data: DataDirectory, name: str, outcome: str = "by hand") -> None:
    data.verdicts.give_by_hand(name, None, 0, "by hand")
    verdict = data.verdicts.of(name)
    assert verdict is not None
    data.verdicts.give(replace(verdict, outcome=outcome))  # type: ignore[arg-type]


def test_an_empty_directory_is_all_zeros_and_stays_empty(data: DataDirectory, tmp_path: Path) -> None:
    found = read_overview(data)
    assert (found.generations, found.failures, found.failures_new, found.failures_used) == (0, 0, 0, 0)
    assert (found.splits, found.sources, found.stream, found.damage, found.candidate) == ({}, {}, [], [], None)
    assert list(tmp_path.iterdir()) == []


def test_generations_failures_splits_and_sources_are_counted(data: DataDirectory) -> None:
    agreed = {"target_output": (5, 6), "draft_output": (5, 6)}
    for i in range(40):
        record = make_record(
            prompt=f"prompt {chr(0x4E00 + i)}", source="a" if i % 2 else "b", **(agreed if i < 8 else {})
        )
        data.log.append(record)
    found, records = read_overview(data), list(data.log.records())
    assert (found.generations, found.failures) == (40, 32)
    assert found.sources == {"a": 20, "b": 20}
    assert sum(found.splits.values()) == 40
    assert found.splits.keys() == {"train", "validation", "heldout"}
    trainable = [record for record in records if record.is_failure and record.split == "train"]
    assert found.failures_new == len(trainable) < 32
    assert found.failures_held_out == 32 - len(trainable)
    heldout = [record for record in records if record.split == "heldout"]
    assert found.heldout_prompts == {record.group for record in heldout}
    assert [one.key.source for one in found.stream] == [record.source for record in records]


def test_a_cancelled_generation_is_a_failure_to_train_on_and_nothing_is_measured_on_it(data: DataDirectory) -> None:
    for i in range(40):
        data.log.append(make_record(prompt=f"prompt {chr(0x4E00 + i)}", finish="cancelled"))
    found = read_overview(data)
    assert (found.generations, found.cancelled, found.failures) == (40, 40, 40)
    assert found.failures_new == sum(record.split == "train" for record in data.log.records())
    assert (found.stream, found.heldout_prompts) == ([], set())


def test_a_failure_is_used_once_a_version_that_learned_from_it_has_a_verdict(data: DataDirectory) -> None:
    records = [data.log.append(make_record(prompt=f"prompt {chr(0x4E00 + i)}")) for i in range(5)]
    for ids in ([records[0].id], [records[0].id, records[3].id]):
        data.registry.create(write_adapter, {"record_ids": ids})
    found = read_overview(data)
    assert (found.failures_used, found.failures_new, found.candidate) == (0, 5, "v0002")
    judge(data, "v0002")
    found = read_overview(data)
    assert (found.failures, found.failures_used, found.failures_new) == (5, 2, 3)
    assert found.candidate is None  # v0001 was passed over for a newer one


def test_a_failure_that_was_offered_in_vain_is_used_too(data: DataDirectory) -> None:
    records = [data.log.append(make_record(prompt=f"prompt {chr(0x4E00 + i)}")) for i in range(3)]
    data.registry.create(write_adapter, {"record_ids": [records[0].id], "passed_over_ids": [records[2].id]})
    judge(data, "v0001")
    found = read_overview(data)
    assert (found.failures_used, found.failures_new, found.failures_trainable) == (2, 1, 3)


def test_the_failures_of_a_version_that_there_was_nothing_to_judge_of_are_new_again(data: DataDirectory) -> None:
    record = data.log.append(make_record())
    data.registry.create(write_adapter, {"record_ids": [record.id]})
    judge(data, "v0001", "discarded")
    found = read_overview(data)
    assert (found.failures_new, found.failures_used, found.candidate) == (1, 0, None)
    data.registry.promote("v0001")
    assert read_overview(data).failures_used == 1


def test_an_older_version_is_no_candidate_because_the_newest_is_damaged(data: DataDirectory) -> None:
    for _ in range(2):
        data.registry.create(write_adapter, {})
    (data.registry.root / "v0002" / "manifest.json").write_bytes(b"{}")
    found = read_overview(data)
    assert found.candidate is None
    assert [line.split(":")[0] for line in found.damage] == ["v0002"]


def test_a_pruned_version_is_no_candidate(data: DataDirectory) -> None:
    for _ in range(2):
        data.registry.create(write_adapter, {})
    assert data.registry.prune(1) == ["v0001"]
    shutil.rmtree(data.registry.root / "v0002")
    assert read_overview(data).candidate is None


def test_a_pruned_version_has_not_forgotten_what_it_learned_from(data: DataDirectory) -> None:
    record = data.log.append(make_record())
    data.registry.create(write_adapter, {"record_ids": [record.id]})
    judge(data, "v0001")
    data.registry.create(write_adapter, {})
    data.registry.prune(1)
    assert read_overview(data).failures_used == 1


def test_a_version_that_is_in_use_is_no_candidate(data: DataDirectory) -> None:
    data.registry.create(write_adapter, {})
    data.registry.promote("v0001")
    assert read_overview(data).candidate is None


def test_a_version_made_for_another_draft_is_no_candidate(data: DataDirectory) -> None:
    data.registry.create(write_adapter, {"pair": PairId("t", "d", "k")})
    assert read_overview(data, "t", "d").candidate == "v0001"
    assert read_overview(data, "t", "other").candidate is None


def test_generations_of_another_target_are_counted_apart(data: DataDirectory) -> None:
    data.log.append(make_record())
    data.log.append(make_record(prompt="another", pair=PairId("other", "b" * 64, "c" * 64)))
    found = read_overview(data, "other")
    assert (found.generations, found.other_pairs, found.failures_new, len(found.stream)) == (2, 1, 1, 1)


def test_a_generation_that_was_logged_twice_counts_once(data: DataDirectory) -> None:
    record = make_record()
    data.log.append(record)
    data.log.append(record)
    found = read_overview(data)
    assert (found.failures, found.generations, len(found.stream)) == (1, 1, 1)


def test_damaged_lines_and_versions_are_named_and_the_rest_is_counted(data: DataDirectory) -> None:
    for i in range(3):
        data.log.append(make_record(prompt=f"prompt {chr(0x4E00 + i)}"))
    lines = data.log.path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"prompt \xe4', b'"tropic \xe4')
    data.log.path.write_bytes(b"".join(lines))
    for _ in range(2):
        judge(data, data.registry.create(write_adapter, {}).name)
    (data.registry.root / "v0001" / "manifest.json").write_bytes(b"{}")
    found = read_overview(data)
    assert found.generations == 2
    assert [line.partition(":")[0] for line in found.damage] == ["line 2", "v0001"]
