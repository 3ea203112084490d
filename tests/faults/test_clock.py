"""A clock that goes backward: nothing is trained twice, training does not stop for ever, and order is by number."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from builders import NO_SYNC, make_record, write_adapter
from fault_table import Row
from shop import PROMPTS, Shop

from draftloop.config import Config
from draftloop.data.records import PairId
from draftloop.data_directory import DataDirectory
from draftloop.errors import TrainingFailed
from draftloop.models.hub import local_fingerprints
from draftloop.registry.registry import Pointer, Registry
from draftloop.retraining.run import retrain
from draftloop.retraining.work import RetrainResult

pytestmark = pytest.mark.row("clock goes backward")

MINUTE, DAY = 60.0, 86_400.0
LEAST = 5  # new failures that make a training worth while
INTERVAL = 30.0  # minutes


def fails_at_once(*_arguments: object) -> Any:
    """Loads no pair: the training has failed before it began, and the audit says so."""
    raise TrainingFailed("not today")


class Machine:
    """A data directory with enough to train on at any time, the true time, and a clock that may be wrong."""

    def __init__(self, root: Path) -> None:
        sections = {"training": {"min_failure_cases": LEAST}, "retrain": {"min_interval_minutes": INTERVAL}}
        self.config = Config.model_validate(sections)
        self.data = DataDirectory(root, files=NO_SYNC)
        self.true = self.clock = 1_700_000_000.0
        found = local_fingerprints(self.config.models.target)
        assert found is not None
        self.pair = PairId(found.model, "b" * 64, "c" * 64)

    def wait(self, minutes: float) -> None:
        self.true += minutes * MINUTE
        self.clock += minutes * MINUTE

    def retrain(self) -> RetrainResult | None:
        """One run by cron, with enough to train on again; None where it began a training."""
        for _ in range(2 * LEAST):
            self.data.log.append(make_record(pair=self.pair))
        try:
            return retrain(self.data, self.config, load=fails_at_once, clock=lambda: self.clock)
        except TrainingFailed:
            return None


def test_a_clock_that_goes_backward_makes_no_training_come_sooner_and_none_fail_to_come(
    tmp_path: Path, row: Row
) -> None:
    """Random waits and jumps: never two trainings within the interval of true time, and always one soon after it."""
    choose, rounds = random.Random(2), row.count(2, 40)
    for number in range(rounds):
        machine = Machine(tmp_path / str(number))
        last, waited = -DAY, INTERVAL
        for _ in range(40):
            minutes = choose.uniform(0.0, 20.0)
            machine.wait(minutes)
            waited += minutes
            if choose.random() < 0.2:
                machine.clock -= choose.uniform(0.0, 2 * DAY)
                waited = -INTERVAL  # it may begin the interval anew, once it has noticed
            found = machine.retrain()
            if found is None:
                assert machine.true - last >= INTERVAL * MINUTE
                last, waited = machine.true, 0.0
            else:
                assert found.outcome == "nothing"
                assert "retrain.min_interval_minutes is 30" in found.why
                assert waited < INTERVAL + 20.0, "it waits for ever"
                row.did(1, "retrains that had to wait")
            row.did(1, "retrains")
        sequences = [entry["sequence"] for entry in machine.data.audit.entries()]
        assert sequences == list(range(1, len(sequences) + 1))
    assert row.counts["retrains that had to wait"] > 0.2 * row.counts["retrains"]


def test_it_says_that_the_clock_went_backward(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.retrain() is None
    machine.clock -= DAY
    found = machine.retrain()
    assert found is not None
    assert "the clock went backward by 1440 minutes" in found.why


def test_a_real_retrain_a_day_back_trains_nothing_a_second_time(tmp_path: Path, collected: Shop, row: Row) -> None:
    retraining = collected.config.retrain.model_copy(update={"min_interval_minutes": INTERVAL})
    shop = collected.copy(tmp_path / "data")
    shop = Shop(DataDirectory(shop.data.root, files=NO_SYNC), shop.config.model_copy(update={"retrain": retraining}))
    first = shop.retrain(clock=lambda: 1_700_000_000.0)
    assert first.trained
    shop.collect(PROMPTS[60:75])
    back = shop.retrain(clock=lambda: 1_700_000_000.0 - DAY)
    assert (back.outcome, back.trained) == ("nothing", False)
    assert "the clock went backward by 1440 minutes" in back.why
    later = shop.retrain(clock=lambda: 1_700_000_000.0 - DAY + INTERVAL * MINUTE)
    assert later.trained
    assert shop.data.registry.versions() == ["v0001", "v0002"]
    row.did(1, "real retrains a day back")


def test_versions_champions_and_journals_are_ordered_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    now = [2_000_000_000.0]

    def backward() -> float:
        now[0] -= DAY
        return now[0]

    monkeypatch.setattr(time, "time", backward)
    registry = Registry(tmp_path, NO_SYNC)
    for _ in range(4):
        registry.promote(registry.create(write_adapter, {}).name)
    created = [registry.manifest(name).created for name in registry.versions()]
    assert created == sorted(created, reverse=True)
    assert registry.versions() == ["v0001", "v0002", "v0003", "v0004"]
    assert (registry.latest(), registry.pointer()) == ("v0004", Pointer("v0004", "v0003", 4))
    assert registry.rollback() == Pointer("v0003", "v0004", 5)
    assert registry.prune(keep=1) == ["v0001", "v0002"]
    row.did(6, "moves of the pointer and prunings")


def test_records_keep_the_order_of_the_log_whatever_their_time(tmp_path: Path) -> None:
    log = DataDirectory(tmp_path, files=NO_SYNC).log
    written = [log.append(make_record(time=1000.0 - number, prompt=f"p {chr(97 + number)}")) for number in range(20)]
    assert list(log.records()) == written
