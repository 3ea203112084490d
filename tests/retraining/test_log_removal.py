"""Removing records by hand: what refers to them is dealt with, and everything after it still works."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from builders import NO_SYNC, make_record, write_adapter
from log_worlds import topic
from shop import LATER, Shop
from stops import StopAfter

from draftloop.config import Gate
from draftloop.data.record_lines import from_line, to_line
from draftloop.data.records import PairId
from draftloop.data.removal import RecordChoice
from draftloop.data_directory import DataDirectory
from draftloop.errors import Interrupted, LockedError, NothingToDo
from draftloop.evaluation.held_out import generations_to_measure
from draftloop.registry.verdicts import Attempt
from draftloop.retraining.facts import read_facts
from draftloop.retraining.log_removal import plan_removal, remove_from_log
from draftloop.retraining.plan import next_action
from draftloop.status import read_overview
from draftloop.training.run import RunDirectory

BAD = RecordChoice(source="bad")


def half_bad(shop: Shop) -> Shop:
    """Every other generation is of the source bad."""
    records = [from_line(line) for line in shop.data.log.path.read_bytes().splitlines(keepends=True)]
    shop.data.log.path.write_bytes(
        b"".join(to_line(replace(one, source="bad") if i % 2 else one) for i, one in enumerate(records))
    )
    return Shop(DataDirectory(shop.data.root), shop.config)


def test_after_a_removal_it_trains_gates_and_measures_as_ever(shop: Shop) -> None:
    shop = half_bad(shop)
    before = read_overview(shop.data)
    made = remove_from_log(shop.data, BAD)
    assert made.done.removed == before.sources["bad"] > 40
    after = read_overview(shop.data)
    assert after.sources == {"default": before.sources["default"]}
    assert after.damage == []
    shop.collect(LATER)  # held-out prompts enough for the gate
    found = shop.retrain()
    assert found.steps == ["train", "gate"]
    assert generations_to_measure(shop.data.log, lambda _record: None).records
    assert "bad" not in {record.source for record in shop.data.replay.records()}


def test_an_open_epoch_goes_on_with_what_is_left_and_another_begins_where_that_is_too_little(shop: Shop) -> None:
    shop = half_bad(shop)
    shop.add_version(0.0)
    assert shop.retrain().outcome == "refused"
    (epoch,) = shop.data.verdicts.open_epochs()
    bad = {record.id for record in shop.data.log.records({"heldout"}) if record.source == "bad"}
    one = remove_from_log(shop.data, RecordChoice(ids=frozenset([epoch.record_ids[0]])))
    assert one.epochs == (
        f"1 of them are in open held-out epoch 1: it goes on with its other {len(epoch.record_ids) - 1} prompts",
    )
    shop.add_version(0.1)
    assert shop.retrain().outcome == "refused"
    assert [epoch.number for epoch in shop.data.verdicts.open_epochs()] == [1]
    (sentence,) = remove_from_log(shop.data, BAD).epochs
    assert sentence.startswith(f"{len(bad & set(epoch.record_ids[1:]))} of them are in open held-out epoch 1: ")
    assert sentence.endswith("too few, so the next attempt begins another epoch")
    shop.collect(LATER)
    shop.add_version(0.2)
    assert shop.retrain().outcome == "refused"
    assert [epoch.number for epoch in shop.data.verdicts.open_epochs()] == [2]


def test_versions_that_were_trained_on_them_are_named_with_a_way_out(promoted: Shop, tmp_path: Path) -> None:
    shop = promoted.copy(tmp_path / "data")
    trained = set(shop.data.registry.manifest("v0001").record_ids)
    made = plan_removal(shop.data, RecordChoice(ids=frozenset(list(trained)[:7])))
    assert [version.sentence for version in made.versions] == ["v0001 (the champion) was trained on 7 of them"]
    assert made.remedy == "`draftloop adapters promote none` puts the bare draft into use"
    clean, built = shop.add_version(0.1, parent=None), shop.add_version(0.1, parent="v0001")
    made = plan_removal(shop.data, RecordChoice(ids=frozenset(list(trained)[:7])))
    assert [version.sentence for version in made.versions][1:] == [f"{built} is built on v0001"]
    assert f"adapters promote {clean}` puts one into use" in str(made.remedy)
    shop.data.registry.promote(clean)
    shop.data.registry.promote("v0001")
    made = remove_from_log(shop.data, RecordChoice(ids=frozenset(trained)))
    assert f"adapters rollback` goes back to {clean}, which was trained on none of them" in str(made.remedy)
    assert shop.retrain().steps != []
    assert not trained & {record.id for record in shop.data.log.records()}


def test_a_watch_whose_place_in_the_log_is_gone_begins_anew(promoted: Shop, tmp_path: Path) -> None:
    shop = promoted.copy(tmp_path / "data")
    remove_from_log(shop.data, RecordChoice(before=2.0**40))
    assert next(shop.data.log.records(), None) is None
    shop.collect(LATER)
    facts = read_facts(shop.data, shop.config, 0.0)
    assert next_action(facts, shop.config).action in ("train", "nothing", "wait", "check")
    assert shop.retrain().outcome in ("nothing", "promoted", "refused", "inconclusive")
    assert shop.data.registry.champion() is not None


def test_a_training_that_was_cut_off_and_could_go_on_with_them_is_given_up_with_its_samples(shop: Shop) -> None:
    shop = half_bad(shop)
    shop.config = shop.config.model_copy(
        update={"training": shop.config.training.model_copy(update={"proposals": 1, "save_every": 1})}
    )
    with pytest.raises(Interrupted):
        shop.retrain(stop=StopAfter(40))  # behind the on-policy samples, whose tokens look at it too
    (run,) = RunDirectory.all(shop.data.runs)
    assert list(run.path.glob("texts-*"))
    other = plan_removal(shop.data, RecordChoice(ids=frozenset({_heldout(shop)})))
    assert other.runs == ()
    made = remove_from_log(shop.data, BAD)
    assert made.runs == (run.id,)
    assert run.is_finished()
    assert not list(run.path.glob("texts-*"))
    assert not run.checkpoints.exist()
    assert read_facts(shop.data, shop.config, 0.0).run is None
    shop.collect(LATER)
    assert shop.retrain().steps[0] == "train"


def _heldout(shop: Shop) -> str:
    return next(record.id for record in shop.data.log.records({"heldout"}))


# -- without a model --------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    data = DataDirectory(tmp_path / "data", files=NO_SYNC)
    data.log.extend([make_record(prompt=topic(n), source="bad" if n % 3 == 0 else "good") for n in range(60)])
    return data


def test_a_training_at_work_holds_it_off_and_nothing_is_lost(data: DataDirectory) -> None:
    before = data.log.path.read_bytes()
    with data.training_lock(), pytest.raises(LockedError):
        remove_from_log(DataDirectory(data.root, files=NO_SYNC), BAD)
    assert data.log.path.read_bytes() == before


@pytest.mark.parametrize("source", ["bad", "nobody"])
def test_copies_that_a_killed_trial_of_layers_left_go_too(data: DataDirectory, source: str) -> None:
    left = data.runs / ".layers-trial-old" / "failures" / "failures.jsonl"
    left.parent.mkdir(parents=True)
    left.write_bytes(data.log.path.read_bytes())
    with suppress(NothingToDo):
        remove_from_log(data, RecordChoice(source=source))
    assert list(data.runs.glob(".layers*")) == []


def test_where_nothing_fits_nothing_is_done(data: DataDirectory) -> None:
    before = data.log.path.read_bytes()
    for work in (plan_removal, remove_from_log):
        with pytest.raises(NothingToDo, match="no record in log and replay buffer fits"):
            work(data, RecordChoice(source="nobody"))
    assert data.log.path.read_bytes() == before


def test_a_plan_says_the_same_and_changes_nothing(data: DataDirectory) -> None:
    before = {path: path.read_bytes() for path in data.root.rglob("*") if path.is_file()}
    planned = plan_removal(data, BAD)
    assert {path: path.read_bytes() for path in data.root.rglob("*") if path.is_file()} == before
    done = remove_from_log(data, BAD)
    assert (planned.done.removed, planned.done.kept, planned.done.sources) == (20, 40, {"bad": 20})
    assert (done.done.removed, done.done.kept, done.done.sources) == (20, 40, {"bad": 20})


def test_the_epoch_of_another_target_is_not_mentioned(data: DataDirectory) -> None:
    held_out = list(data.log.records({"heldout"}))
    data.registry.create(write_adapter, {"record_ids": ["0" * 32], "trained_groups": ["0" * 16]})
    data.verdicts.open_attempt(
        Attempt("v0001", None, "a", None),
        PairId("other", "draft", "tokenizer"),
        Gate(),
        {record.id: record.group for record in held_out},
        lambda _number: [held_out[0].id],
    )
    others = frozenset(record.id for record in held_out[1:])
    assert plan_removal(data, RecordChoice(ids=others)).epochs == ()
    assert plan_removal(data, RecordChoice(ids=frozenset({held_out[0].id}))).epochs != ()
