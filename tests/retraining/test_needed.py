"""What a compaction must keep, by what needs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import make_record, write_adapter
from log_worlds import topic

from draftloop.config import Config
from draftloop.data.log_position import mark_of
from draftloop.data.records import Record
from draftloop.data_directory import DataDirectory
from draftloop.errors import StoreError
from draftloop.evaluation.looks import Look
from draftloop.registry.verdicts import Attempt
from draftloop.retraining.gate_step import heldout_sample
from draftloop.retraining.needed import needed_records
from draftloop.status import read_overview
from draftloop.store.sealed_lines import seal, unseal
from draftloop.training.run import RunDirectory

CONFIG = Config.model_validate(
    {"gate": {"min_heldout_prompts": 2, "max_heldout_generations": 5}, "drift": {"reference": 10}}
)
ACCEPTED = {"target_output": (5, 6), "draft_output": (5, 6)}  # no failure


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    return DataDirectory(tmp_path / "data")


def log(data: DataDirectory, numbers: range, **overrides: Any) -> list[Record]:
    return data.log.extend(make_record(**{"prompt": topic(number), **overrides}) for number in numbers)


def ids(records: list[Record]) -> set[str]:
    return {record.id for record in records}


def needed(data: DataDirectory) -> dict[str, set[str]]:
    return needed_records(data, CONFIG)


def test_an_empty_directory_needs_nothing_and_stays_empty(data: DataDirectory) -> None:
    assert set().union(*needed(data).values()) == set()
    assert not data.root.exists()


def test_failures_are_needed_until_a_verdict_uses_them(data: DataDirectory) -> None:
    records = log(data, range(40))
    train = [record for record in records if record.split == "train"]
    log(data, range(40), **ACCEPTED)
    assert needed(data)["unused failures"] == ids(train)
    data.registry.create(write_adapter, {"record_ids": [train[0].id], "trained_groups": [train[0].group]})
    assert needed(data)["unused failures"] == ids(train)
    data.verdicts.give_by_hand("v0001", None, 0, "by hand")
    assert needed(data)["unused failures"] == ids(train[1:])


def test_the_records_of_an_open_epoch_are_needed(data: DataDirectory) -> None:
    records = log(data, range(60), **ACCEPTED)
    heldout = [record for record in records if record.split == "heldout"]
    groups = {record.id: record.group for record in heldout}
    made = Attempt("v0001", None, "files", None)
    data.verdicts.open_attempt(made, records[0].pair, CONFIG.gate, groups, lambda _: [one.id for one in heldout[:3]])
    assert needed(data)["open held-out epochs"] == ids(heldout[:3])


def test_a_candidate_needs_what_it_learned_from_and_only_the_newest_of_a_draft_is_one(data: DataDirectory) -> None:
    records = log(data, range(6), **ACCEPTED)
    for first in (0, 2, 4):
        manifest = {"record_ids": [records[first].id], "passed_over_ids": [records[first + 1].id]}
        data.registry.create(write_adapter, {**manifest, "trained_groups": ["0" * 16]})
    assert needed(data)["candidates and old manifests"] == ids(records[4:])
    data.verdicts.give_by_hand("v0003", None, 0, "by hand")
    assert needed(data)["candidates and old manifests"] == set()


def test_a_manifest_that_does_not_name_its_prompt_groups_needs_its_records(data: DataDirectory) -> None:
    records = log(data, range(4), **ACCEPTED)
    for record in records[:2]:
        data.registry.create(write_adapter, {"record_ids": [record.id]})
        data.verdicts.give_by_hand(str(data.registry.latest()), None, 0, "by hand")
    data.registry.prune(1)
    assert needed(data)["candidates and old manifests"] == ids(records[:2])


def test_a_training_that_can_go_on_needs_its_mixture(data: DataDirectory) -> None:
    import mlx.core as mx

    records = log(data, range(6), **ACCEPTED)
    run = RunDirectory.create(data.runs)
    parts = ("failures", "replay_pool", "validation")
    run.describe({"purpose": "train"}, {part: [record.id] for part, record in zip(parts, records, strict=False)})
    assert needed(data)["trainings to be resumed"] == set()
    run.checkpoints.save({"a": mx.array(1.0)}, {"step": 3})
    assert needed(data)["trainings to be resumed"] == ids(records[:3])
    run.give_up("it failed")
    assert needed(data)["trainings to be resumed"] == set()


def test_looks_that_were_begun_and_the_place_of_the_promotion_are_needed(data: DataDirectory) -> None:
    records = log(data, range(60), **ACCEPTED)
    data.registry.create(write_adapter, {})
    pointer = data.registry.promote("v0001")
    data.verdicts.give_by_hand("v0001", None, 0, "by hand")
    watching = data.promotion_watch.begin(pointer, read_overview(data).stream, CONFIG.gate)
    assert watching is not None
    log(data, range(60, 90), **ACCEPTED)
    before = needed(data)["looks and drift"]
    assert records[-1].id in before
    data.promotion_watch.note_begun(watching, Look("look", None, 2, (records[3].id, records[4].id), 0.01))
    assert needed(data)["looks and drift"] - before == ids(records[3:5]) - before


def test_a_watch_that_is_damaged_begins_anew_and_one_of_a_newer_draftloop_needs_what_nobody_knows(
    data: DataDirectory,
) -> None:
    log(data, range(20), **ACCEPTED)
    data.registry.create(write_adapter, {})
    watching = data.promotion_watch.begin(data.registry.promote("v0001"), read_overview(data).stream, CONFIG.gate)
    assert watching is not None
    (path,) = data.promotion_watch.root.glob("watching/*.json")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    needed(data)
    path.write_bytes(seal(unseal(whole).replace(b'"schema":1', b'"schema":2')))
    with pytest.raises(StoreError, match="schema 2"):
        needed(data)


def test_the_place_of_the_last_verdict_and_what_drift_compares_with_are_needed(data: DataDirectory) -> None:
    former = log(data, range(120), **ACCEPTED)
    data.registry.create(write_adapter, {})
    data.registry.promote("v0001")
    data.verdicts.give_by_hand("v0001", None, 0, "by hand")
    stream = read_overview(data).stream
    data.audit.append({"outcome": "promoted", "mark": mark_of([one.id for one in stream]), "when": 1.0})
    own = log(data, range(120, 200), adapter="v0001", **ACCEPTED)
    unseen = {one.id for one in read_overview(data).stream if one.unseen}
    expected = [record.id for record in own if record.id in unseen][:10]
    expected += [record.id for record in former if record.id in unseen][-100:]
    assert needed(data)["looks and drift"] == {*expected, former[-1].id}


def test_a_place_that_is_a_count_needs_all_before_it(data: DataDirectory) -> None:
    """As older versions wrote it: without one of them the count would point elsewhere."""
    records = log(data, range(50), **ACCEPTED)
    data.audit.append({"outcome": "refused", "generations": 30, "when": 1.0})
    assert needed(data)["looks and drift"] >= ids(records[:30])


def test_of_every_target_the_newest_held_out_generations_are_needed(data: DataDirectory) -> None:
    records = log(data, range(80), **ACCEPTED)
    other = replace(records[0].pair, target="x" * 64)
    others = log(data, range(80, 160), pair=other, **ACCEPTED)
    expected = [[one for one in own if one.split == "heldout"][-5:] for own in (records, others)]
    assert needed(data)["newest held-out generations"] == ids([*expected[0], *expected[1]])


def held_out(data: DataDirectory, numbers: range, **overrides: Any) -> list[Record]:
    return [one for one in log(data, numbers, **{**ACCEPTED, **overrides}) if one.split == "heldout"]


def test_of_held_out_prompts_that_come_again_and_again_the_newest_of_each_is_needed_first(data: DataDirectory) -> None:
    once = held_out(data, range(80))
    often = held_out(data, range(9), prompt=once[-1].prompt)
    kept = needed(data)["newest held-out generations"]
    assert kept == ids([*once[-5:-1], often[-1]])
    left = [record for record in data.log.records() if record.id in kept]
    assert len(heldout_sample(left, 5, 0)) == 5


def test_where_held_out_prompts_are_fewer_than_the_gate_scores_their_newest_repeats_are_needed(
    data: DataDirectory,
) -> None:
    once = held_out(data, range(80))
    again = held_out(data, range(9), prompt=once[-1].prompt)
    gate = CONFIG.gate.model_copy(update={"max_heldout_generations": len(once) + 2})
    kept = needed_records(data, CONFIG.model_copy(update={"gate": gate}))["newest held-out generations"]
    assert kept == ids([*once[:-1], *again[-3:]])


def test_a_source_of_which_nothing_came_lately_keeps_its_part_of_the_gate(data: DataDirectory) -> None:
    rare = held_out(data, range(40), source="rare")
    held_out(data, range(40, 160), source="common")
    assert ids(rare[-5:]) < needed(data)["newest held-out generations"]
