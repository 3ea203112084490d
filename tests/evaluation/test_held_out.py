"""What is measured on is held out, or the words say what it is: never more than was measured."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from builders import make_record, write_adapter

from draftloop.data.records import Record, own_group
from draftloop.data_directory import DataDirectory
from draftloop.errors import PromptError
from draftloop.evaluation.held_out import (
    NOT_HELD_OUT,
    SEEN,
    UNKNOWN,
    HeldOut,
    MeasuredPrompt,
    check_held_out,
    check_logged,
    generations_to_measure,
)

LION, NEAR_LION, SHARK = "Describe the lion", "Could you describe a lion, please?", "Describe the shark"


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    return DataDirectory(tmp_path / "data")


def train_on(data: DataDirectory, *prompts: str, **fields: object) -> Path:
    """A version that was trained on these prompts, which are logged for it."""
    records = [data.log.append(make_record(prompt=prompt)) for prompt in prompts]
    groups = [own_group(record) for record in records]
    given = {"record_ids": [record.id for record in records], "trained_groups": groups, **fields}
    return data.registry.create(write_adapter, given).path


def examined(data: DataDirectory, prompts: list[str], adapter: Path | None) -> HeldOut:
    """As a process that has just begun sees it."""
    chosen = None if adapter is None else (adapter.name, adapter)
    return check_held_out([MeasuredPrompt(prompt, prompt) for prompt in prompts], DataDirectory(data.root).log, chosen)


def test_prompts_that_nobody_knows_are_held_out(data: DataDirectory) -> None:
    path = train_on(data, LION)
    found = examined(data, [SHARK, "pears"], path)
    assert (found.heldout, found.mark, found.sentence) == (True, None, None)
    assert found.to_json() == {
        "heldout": True,
        "mark": None,
        "prompts_for_training": 0,
        "prompts_seen_in_training": 0,
    }


@pytest.mark.parametrize("prompt", [LION, "DESCRIBE the lion!", NEAR_LION])
def test_a_near_duplicate_of_what_an_adapter_was_trained_on_flatters_it(prompt: str, data: DataDirectory) -> None:
    found = examined(data, [prompt, SHARK, "pears"], train_on(data, LION))
    assert (found.heldout, found.mark) == (False, SEEN)
    assert found.sentence == "seen in training: flattering: v0001 was trained on 1 of 3 prompts"
    assert found.to_json()["prompts_seen_in_training"] == 1


def test_without_an_adapter_the_same_prompts_are_not_held_out_and_flatter_nobody(data: DataDirectory) -> None:
    train_on(data, LION)
    found = examined(data, [NEAR_LION], None)
    assert (found.heldout, found.mark) == (False, NOT_HELD_OUT)
    assert found.sentence == "not held out: the one prompt is of the splits train or validation"


def test_prompts_for_training_that_an_adapter_did_not_have_are_not_held_out(data: DataDirectory) -> None:
    path = train_on(data, LION)
    data.log.append(make_record(prompt=SHARK))
    found = examined(data, [SHARK, "pears"], path)
    assert (found.heldout, found.mark) == (False, NOT_HELD_OUT)
    assert found.sentence == (
        "not held out: 1 of 2 prompts is of the splits train or validation, though v0001 was not trained on them"
    )
    both = examined(data, [LION, SHARK], path)
    assert both.sentence == (
        "seen in training: flattering: v0001 was trained on 1 of 2 prompts; 1 more of the splits train or validation"
    )


def test_where_the_log_was_deleted_nobody_knows_of_near_duplicates(data: DataDirectory) -> None:
    path = train_on(data, LION)
    data.log.path.unlink()
    left = DataDirectory(data.root)
    assert examined(left, [LION], None).mark == NOT_HELD_OUT
    for adapter in (path, None):
        found = examined(left, [NEAR_LION], adapter)
        assert (found.heldout, found.mark) == (None, UNKNOWN)
    assert found.sentence == ("not known to be held out: not all that was trained on is known here")


def test_validation_prompts_are_not_held_out(data: DataDirectory) -> None:
    records = [data.log.append(make_record(prompt=chr(0x4E00 + i))) for i in range(60)]
    (one, *_) = [record for record in records if record.split == "validation"]
    assert examined(data, [one.prompt], None).heldout is False
    (other, *_) = [record for record in records if record.split == "heldout"]
    assert examined(data, [other.prompt], None).heldout is True


def test_what_the_versions_before_it_learned_counts_where_the_log_is_gone_too(data: DataDirectory) -> None:
    train_on(data, LION)
    path = train_on(data, SHARK, parent="v0001")
    data.log.path.unlink()
    found = examined(DataDirectory(data.root), [LION], path)
    assert (found.mark, found.heldout) == (SEEN, False)


def test_records_of_a_manifest_without_groups_are_looked_up_and_where_they_are_gone_nobody_knows(
    data: DataDirectory,
) -> None:
    path = train_on(data, LION, trained_groups=[])
    assert examined(data, [NEAR_LION], path).mark == SEEN
    data.log.path.unlink()
    found = examined(DataDirectory(data.root), [SHARK], path)
    assert (found.heldout, found.mark) == (None, UNKNOWN)


def test_of_an_adapter_from_elsewhere_nobody_knows_what_it_was_trained_on(data: DataDirectory, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    write_adapter(tmp_path / "foreign")
    found = examined(data, [SHARK], tmp_path / "foreign")
    assert (found.heldout, found.mark) == (None, UNKNOWN)
    assert found.sentence == "not known to be held out: not all that was trained on is known here"
    data.log.append(make_record(prompt=SHARK))
    found = examined(data, [SHARK], tmp_path / "foreign")
    assert (found.heldout, found.mark) == (False, NOT_HELD_OUT)
    assert found.sentence == (
        "not held out: the one prompt is of the splits train or validation; not all that was trained on is known here"
    )


def test_a_version_of_another_data_directory_says_itself_what_it_was_trained_on(
    data: DataDirectory, tmp_path: Path
) -> None:
    other = DataDirectory(tmp_path / "other")
    train_on(other, LION)
    second = train_on(other, "apples", parent="v0001")
    assert examined(data, [LION], second).mark == SEEN
    assert examined(data, [SHARK], second).heldout is None  # near-duplicates are known in the other one's log alone
    assert examined(other, [SHARK], second).heldout is True
    shutil.copytree(second, tmp_path / "alone")  # without the one that it was built on
    assert examined(data, ["apples"], tmp_path / "alone").mark == SEEN
    assert examined(data, [SHARK], tmp_path / "alone").heldout is None


def usable(_record: Record) -> None:
    return None


def test_held_out_generations_are_taken_alone_where_there_are_any(data: DataDirectory) -> None:
    records = [data.log.append(make_record(prompt=chr(0x4E00 + i))) for i in range(60)]
    found = generations_to_measure(data.log, usable)
    assert {record.split for record in found.records} == {"heldout"}
    assert len(found.records) == sum(record.split == "heldout" for record in records)


def test_without_any_the_others_are_and_without_those_it_is_refused(data: DataDirectory) -> None:
    with pytest.raises(PromptError, match=r"no generations in .*`collect-data` logs them"):
        check_logged(data.log)
    for prompt in (LION, SHARK):
        data.log.append(make_record(prompt=prompt))
    check_logged(data.log)
    assert [record.prompt for record in generations_to_measure(data.log, usable).records] == [LION, SHARK]
    with pytest.raises(PromptError, match=r"none of 2 logged generations can be used: 2 \(odd\); collect more with"):
        generations_to_measure(data.log, lambda _: "odd")


def test_held_out_generations_that_cannot_be_used_are_counted_and_the_others_are_taken(data: DataDirectory) -> None:
    for i in range(60):
        data.log.append(make_record(prompt=chr(0x4E00 + i)))
    found = generations_to_measure(data.log, lambda record: "odd" if record.split == "heldout" else None)
    assert {record.split for record in found.records} == {"train", "validation"}
    assert list(found.left_out) == ["odd"]


def test_what_is_near_two_splits_is_measured_on_neither_way(data: DataDirectory) -> None:
    data.log.path.parent.mkdir(parents=True)
    from draftloop.data.record_lines import to_line

    lines = [to_line(make_record(prompt=LION)), to_line(make_record(prompt=NEAR_LION, split="heldout"))]
    data.log.path.write_bytes(b"".join(lines))
    with pytest.raises(PromptError, match=r"2 \(near a prompt of another split\)"):
        generations_to_measure(data.log, usable)
    data.log.append(make_record(prompt=SHARK))
    found = generations_to_measure(data.log, usable)
    assert ([record.prompt for record in found.records], found.near_two_splits) == ([SHARK], 2)
