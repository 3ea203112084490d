"""Keeping the log within its bound: when it is time, what goes, and what is said where it cannot be met."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import NO_SYNC, make_record, write_adapter
from log_worlds import blob_of, topic

from draftloop import reference
from draftloop.config import Config
from draftloop.data.exchange import stored_bytes
from draftloop.data.records import PairId, Record
from draftloop.data_directory import DataDirectory
from draftloop.errors import LockedError, NothingToDo
from draftloop.evaluation.drift import check_streams
from draftloop.models.fingerprints import fingerprints
from draftloop.retraining import log_bound
from draftloop.retraining.facts import History, read_facts
from draftloop.retraining.log_bound import LogBound, compact, is_due
from draftloop.retraining.needed import needed_records
from draftloop.status import read_overview

BLOB = b"x" * 3_000
PAIR = PairId(fingerprints(reference.TARGET).model, fingerprints(reference.DRAFT).model, "c" * 64)
ACCEPTED = {"target_output": (5, 6), "draft_output": (5, 6)}


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    return DataDirectory(tmp_path / "data", files=NO_SYNC)


def config(max_log_mb: int = 1) -> Config:
    return Config.model_validate({"data": {"max_log_mb": max_log_mb}, "gate": {"max_heldout_generations": 20}})


def log(data: DataDirectory, numbers: range, **overrides: object) -> list[Record]:
    records = [make_record(**{"prompt": topic(number), "pair": PAIR, **ACCEPTED, **overrides}) for number in numbers]
    return data.log.extend(records, data.blobs, [BLOB] * len(records))


def size(data: DataDirectory) -> int:
    return stored_bytes(data.log, data.blobs).total


def test_a_log_above_its_bound_is_brought_below_it_with_room_for_more(data: DataDirectory) -> None:
    records = log(data, range(300))
    assert is_due(data, config())
    made = compact(data, config())
    assert made.is_met
    assert made.why_not is None
    assert size(data) == made.done.after.total <= 800_000
    kept = [record.id for record in data.log.records()]
    assert kept[-150:] == [record.id for record in records[-150:]]
    assert not is_due(data, config(), made)


def test_without_a_bound_or_within_it_nothing_is_done_and_nothing_made(data: DataDirectory) -> None:
    for bound, said in ((0, "no bound"), (1, "within its bound")):
        with pytest.raises(NothingToDo, match=said):
            compact(data, config(bound))
        assert not is_due(data, config(bound))
    assert not data.root.exists()


def test_a_writer_keeps_its_log_within_the_bound_and_waits_for_a_training(data: DataDirectory) -> None:
    said: list[str] = []
    keep = LogBound(data, config(), said.append)
    log(data, range(300))
    with data.training_lock():
        keep()
        assert size(data) > 1_000_000
    keep()
    after = size(data)
    assert after <= 800_000
    keep()
    assert size(data) == after
    assert said == []


def test_a_writer_is_told_once_that_the_bound_cannot_be_met_and_tries_again_when_the_log_has_grown(
    data: DataDirectory,
) -> None:
    said: list[str] = []
    keep = LogBound(data, config(), said.append)
    log(data, range(10), target_output=(5, 6, 42), draft_output=(5, 6, 7))  # failures of the first ten: they train
    for seeds, times in ((range(400), 1), (range(1_000, 1_040), 2)):
        again = [make_record(prompt=topic(0), run_seed=seed) for seed in seeds]
        data.log.extend(again, data.blobs, [BLOB] * len(again))
        keep()
        keep()
        assert len(said) == times
    assert "MB unused failures" in said[0]


def test_a_dry_run_says_the_same_and_changes_nothing(data: DataDirectory) -> None:
    log(data, range(300))
    before = {path: path.read_bytes() for path in data.root.rglob("*") if path.is_file()}
    planned = compact(data, config(), dry_run=True)
    assert {path: path.read_bytes() for path in data.root.rglob("*") if path.is_file()} == before
    done = compact(data, config())
    assert (planned.done.kept, planned.done.dropped) == (done.done.kept, done.done.dropped)


def test_a_bound_that_cannot_be_met_is_said_with_what_takes_the_room(data: DataDirectory) -> None:
    log(data, range(10), target_output=(5, 6, 42), draft_output=(5, 6, 7))  # failures of the first ten: they train
    again = [make_record(prompt=topic(0), run_seed=seed) for seed in range(400)]
    data.log.extend(again, data.blobs, [BLOB] * len(again))
    made = compact(data, config())
    assert not made.is_met
    assert made.why_not is not None
    assert "MB unused failures" in made.why_not
    assert "or raise data.max_log_mb" in made.why_not
    assert made.to_json()["met"] is False
    assert not is_due(data, config(), made)
    more = [make_record(prompt=topic(0), run_seed=1_000 + seed) for seed in range(40)]
    data.log.extend(more, data.blobs, [BLOB] * len(more))
    assert is_due(data, config(), made)


def test_whoever_trains_holds_it_off(data: DataDirectory) -> None:
    log(data, range(300))
    before = size(data)
    with data.training_lock(), pytest.raises(LockedError):
        compact(DataDirectory(data.root, files=NO_SYNC), config())
    assert size(data) == before


def test_a_failure_that_comes_while_the_needed_ones_are_found_is_kept_where_the_bound_cannot_be_met(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(data, range(300))
    failure = make_record(prompt=topic(0))
    other = DataDirectory(data.root, files=NO_SYNC)

    def found(data: DataDirectory, settings: Config) -> dict[str, set[str]]:
        needed = needed_records(data, settings)
        other.log.append(failure)
        return needed

    monkeypatch.setattr(log_bound, "ROOM", 1.0)  # a goal of 0
    monkeypatch.setattr(log_bound, "needed_records", found)
    assert compact(data, config()).done.dropped > 200
    assert failure.id in {record.id for record in data.log.records()}


def test_status_shows_it_at_work(data: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    log(data, range(300))
    seen = []
    monkeypatch.setattr(
        "draftloop.retraining.log_bound.needed_records", lambda data, _config: seen.append(data.presence.look()) or {}
    )
    compact(data, config())
    assert seen[0]["command"] == "log compact"


def test_an_alarm_of_drift_and_the_places_in_the_log_outlive_a_compaction(data: DataDirectory) -> None:
    settings = config()
    log(data, range(100))
    data.registry.create(write_adapter, {"record_ids": ["0" * 32], "trained_groups": ["0" * 16]})
    pointer = data.registry.promote("v0001")
    data.verdicts.give_by_hand("v0001", None, 0, "by hand")
    stream = read_overview(data).stream
    data.promotion_watch.begin(pointer, stream, settings.gate)
    data.audit.append({"outcome": "promoted", "mark": [one.id for one in stream[-32:]], "when": 1.0})
    good, bad = ({"log_p": (-0.5,) * 2, "log_q": (value,) * 2, "adapter": "v0001"} for value in (-0.6, -6.0))
    own = [*log(data, range(100, 160), **good), *log(data, range(160, 400), **bad)]
    before = read_facts(data, settings, 0.0)
    assert before.alarms

    made = compact(data, settings)
    assert made.done.dropped > 100
    after = read_facts(data, settings, 0.0)
    assert after.alarms
    assert {(check.kind, round(check.reference, 9)) for check in after.drift_checks} == {
        (check.kind, round(check.reference, 9)) for check in before.drift_checks
    }
    left = {one.id for one in after.overview.stream}
    history = History(data.audit.entries())
    since = after.overview.stream[history.settled(after.overview.ids) :]
    assert [one.id for one in since] == [record.id for record in own if record.id in left]
    assert check_streams(since, "v0001", [], settings.drift, 0)


def test_the_very_same_blobs_are_there_afterwards(data: DataDirectory) -> None:
    records = [make_record(prompt=topic(number), **ACCEPTED) for number in range(1_500)]
    data.log.extend(records, data.blobs, [blob_of(record.id) for record in records])
    compact(data, config())
    for record in data.log.records():
        assert record.teacher is not None
        assert data.blobs.read(record.teacher) == blob_of(record.id)
