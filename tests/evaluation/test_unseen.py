"""Drift sees generations of prompts that their own draft was not trained on, whatever record of the prompt it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import make_record, write_adapter

from draftloop.data.records import own_group
from draftloop.data_directory import DataDirectory
from draftloop.status import read_overview


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    return DataDirectory(tmp_path / "data")


def seen(data: DataDirectory) -> list[bool]:
    return [not one.unseen for one in read_overview(data).stream]


def test_another_generation_of_a_prompt_that_was_trained_on_is_seen(data: DataDirectory) -> None:
    first = data.log.append(make_record(prompt="apples"))
    data.registry.create(write_adapter, {"record_ids": [first.id]})
    data.log.append(make_record(prompt="Apples", adapter="v0001", run_seed=5))
    data.log.append(make_record(prompt="pears", adapter="v0001", run_seed=6))
    assert seen(data) == [False, True, False]  # the first was made by the bare draft, which learned nothing


def test_a_near_duplicate_of_a_prompt_that_was_trained_on_is_seen(data: DataDirectory) -> None:
    first = data.log.append(make_record(prompt="Describe the lion"))
    data.registry.create(write_adapter, {"record_ids": [first.id]})
    data.log.append(make_record(prompt="Could you describe a lion, please?", adapter="v0001", run_seed=5))
    data.log.append(make_record(prompt="Describe the shark", adapter="v0001", run_seed=6))
    assert seen(data) == [False, True, False]


def test_what_the_versions_before_it_learned_counts_too(data: DataDirectory) -> None:
    first = data.log.append(make_record(prompt="apples"))
    second = data.log.append(make_record(prompt="pears"))
    data.registry.create(write_adapter, {"record_ids": [first.id]})
    data.registry.create(write_adapter, {"record_ids": [second.id], "parent": "v0001"})
    data.registry.create(write_adapter, {"record_ids": [second.id]})
    for prompt, adapter in (("apples", "v0002"), ("apples", "v0003"), ("pears", "v0001")):
        data.log.append(make_record(prompt=prompt, adapter=adapter, run_seed=7))
    assert seen(data)[2:] == [True, False, False]


def test_validation_prompts_chose_the_weights(data: DataDirectory) -> None:
    for i in range(60):
        data.log.append(make_record(prompt=chr(0x4E00 + i), adapter="v0001"))
    splits = [record.split for record in data.log.records()]
    assert seen(data) == [split == "validation" for split in splits]
    assert "validation" in splits


def test_a_prompt_that_was_trained_on_is_known_when_its_record_is_gone(data: DataDirectory) -> None:
    first = make_record(prompt="apples")
    data.registry.create(write_adapter, {"record_ids": [first.id], "trained_groups": [own_group(first)]})
    data.log.append(make_record(prompt="Apples!", adapter="v0001", run_seed=5))
    data.log.append(make_record(prompt="pears", adapter="v0001", run_seed=6))
    assert seen(data) == [True, False]


def test_a_new_process_knows_near_duplicates_of_what_was_trained_on_too(data: DataDirectory) -> None:
    """It reads the manifest, which names the group, before the log, which has the prompt."""
    first = data.log.append(make_record(prompt="Describe the lion"))
    data.registry.create(write_adapter, {"record_ids": [first.id], "trained_groups": [own_group(first)]})
    again = DataDirectory(data.root)
    near = make_record(prompt="Could you describe a lion, please?")
    assert again.log.groups().splits_near(near) == {"train"}
    assert again.log.groups().group_of(again.log.append(near)) == again.log.groups().group_of(first)
