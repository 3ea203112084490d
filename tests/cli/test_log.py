"""`log compact`: what it says and changes, by its exit codes and its JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import NO_SYNC, make_record
from log_worlds import topic

from draftloop.data_directory import DataDirectory

ACCEPTED = {"target_output": (5, 6), "draft_output": (5, 6)}
BOUND = ("--max-log-mb", "1")


@pytest.fixture
def data() -> DataDirectory:
    """A log of 1.9 MB of which next to nothing is needed."""
    data = DataDirectory(Path("data"), files=NO_SYNC)
    records = [make_record(prompt=topic(number), **ACCEPTED) for number in range(500)]
    records += [make_record(prompt=topic(0), run_seed=seed, **ACCEPTED) for seed in range(5)]
    data.log.extend(records, data.blobs, [b"x" * 3_000] * len(records))
    return data


def test_it_says_what_went_and_how_much_is_left(call, data: DataDirectory) -> None:
    planned = call("log", "compact", *BOUND, "--dry-run")
    assert planned.code == 0
    assert planned.out.startswith("would drop ")
    assert len(list(data.log.records())) == 505
    found = call("log", "compact", *BOUND)
    assert (found.code, found.err) == (0, "")
    left = len(list(data.log.records()))
    assert found.out == f"dropped {505 - left} of 505 records: 0.8 MB instead of 1.9 MB, with a bound of 1.0 MB\n"
    assert "would drop" in planned.out.replace(f"drop {505 - left} ", "drop ")


def test_json_has_the_sizes(call, data: DataDirectory) -> None:
    values = call("log", "compact", *BOUND, "--json").json
    assert (values["status"], values["dry_run"], values["met"], values["why_not"]) == ("ok", False, True, None)
    assert values["bound"] == 1_000_000
    assert values["after"]["log"] == data.log.path.stat().st_size
    assert values["kept"] + values["dropped"] == 505
    assert (values["damaged_lines"], values["lost_blobs"]) == (0, 0)


@pytest.mark.parametrize("bound", [(), ("--max-log-mb", "100")], ids=["none", "within it"])
def test_there_is_nothing_to_do_without_a_bound_or_within_it(call, data: DataDirectory, bound: tuple[str, ...]) -> None:
    before = data.log.path.read_bytes()
    assert call("log", "compact", *bound).code == 10
    assert call("log", "compact", *bound, "--json").json["status"] == "nothing_to_do"
    assert data.log.path.read_bytes() == before


def test_where_everything_is_needed_it_says_so_and_writes_nothing(call) -> None:
    data = DataDirectory(Path("data"), files=NO_SYNC)
    records = [make_record(prompt=topic(0), run_seed=seed) for seed in range(400)]
    data.log.extend(records, data.blobs, [b"x" * 3_000] * len(records))
    before = data.log.path.read_bytes()
    found = call("log", "compact", *BOUND)
    assert (found.code, found.out) == (10, "")
    assert "above the bound of 1.0 MB, and all of it is needed: " in found.err
    assert "MB unused failures" in found.err
    assert data.log.path.read_bytes() == before


def test_where_the_bound_is_not_met_after_all_a_note_says_why(call, data: DataDirectory) -> None:
    records = [make_record(prompt=topic(0), run_seed=seed) for seed in range(400)]
    data.log.extend(records, data.blobs, [b"x" * 3_000] * len(records))
    found = call("log", "compact", *BOUND)
    assert found.code == 0
    assert "above the bound of 1.0 MB" in found.err
    assert len(list(data.log.records())) < 905


def test_damaged_lines_and_blobs_are_said(call, data: DataDirectory) -> None:
    data.log.path.write_bytes(data.log.path.read_bytes().replace(b"rejection", b"rejectioM", 1))
    with data.blobs.path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"y")
    found = call("log", "compact", *BOUND)
    assert "damaged lines, moved to failures.jsonl.broken: 1" in found.err
    assert "teacher probabilities that were damaged or gone: of 1 records" in found.err


def test_a_training_at_work_holds_it_off(call, data: DataDirectory) -> None:
    with data.training_lock():
        assert call("log", "compact", *BOUND).code == 13
        assert call("log", "compact", *BOUND, "--dry-run").code == 0
