"""`log compact` and `log rm`: what they say and change, by their exit codes and their JSON."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from builders import NO_SYNC, make_record, write_adapter
from log_worlds import topic
from mortal import environment, python

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


# -- rm ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed() -> DataDirectory:
    data = DataDirectory(Path("data"), files=NO_SYNC)
    data.log.extend([make_record(prompt=topic(n), source="bad" if n % 3 == 0 else "good") for n in range(30)])
    return data


def test_it_removes_what_is_chosen_and_says_how_much(call, mixed: DataDirectory) -> None:
    planned = call("log", "rm", "--source", "bad", "--dry-run")
    assert planned.out == "would remove 10 of 30 records of the log (bad 10) and 0 of the replay buffer\n"
    assert len(list(mixed.log.records())) == 30
    found = call("log", "rm", "--source", "bad", "--yes")
    assert (found.code, found.err) == (0, "")
    assert found.out == "removed 10 of 30 records of the log (bad 10) and 0 of the replay buffer\n"
    assert {record.source for record in mixed.log.records()} == {"good"}
    assert call("log", "rm", "--source", "bad", "--yes").code == 10


def test_by_id_by_date_and_by_text(call, mixed: DataDirectory) -> None:
    first = next(mixed.log.records())
    assert call("log", "rm", first.id, "--yes", "--json").json["removed"] == 1
    assert call("log", "rm", "--match", f"topic {topic(1)[-1]}$", "--yes", "--json").json["sources"] == {"good": 1}
    assert call("log", "rm", "--before", "2000-01-01", "--yes").code == 10
    values = call("log", "rm", "--before", "2100-01-01T12:00", "--source", "good", "--yes", "--json").json
    assert (values["status"], values["dry_run"], values["removed"], values["kept"]) == ("ok", False, 19, 9)
    assert (values["runs"], values["epochs"], values["versions"], values["remedy"]) == ([], [], [], None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "found nothing that says which records"),
        (["xyz"], "'xyz' is no id of a record"),
        (["--before", "yesterday"], "expected a date such as 2026-11-30"),
        (["--match", "("], "is no regular expression"),
    ],
)
def test_what_cannot_be_read_is_refused_and_nothing_is_removed(
    call, mixed: DataDirectory, arguments: list[str], said: str
) -> None:
    found = call("log", "rm", *arguments, "--yes")
    assert (found.code, found.out) == (2, "")
    assert said in found.err
    assert len(list(mixed.log.records())) == 30


def test_without_a_terminal_it_wants_to_be_told_that_one_is_sure(call, mixed: DataDirectory) -> None:
    found = call("log", "rm", "--source", "bad")
    assert found.code == 2
    assert "--yes removes without asking" in found.err
    assert len(list(mixed.log.records())) == 30


@pytest.mark.parametrize(("answer", "left"), [(b"y\n", 20), (b"n\n", 30), (b"\n", 30)])
def test_on_a_terminal_it_asks(mixed: DataDirectory, tmp_path: Path, answer: bytes, left: int) -> None:
    ours, theirs = os.openpty()
    os.write(ours, answer)
    program = "from draftloop.cli import run_and_exit; run_and_exit()"
    done = subprocess.run(
        python("-c", program, "log", "rm", "--source", "bad"),
        cwd=tmp_path,
        env=environment(),
        check=False,
        stdin=theirs,
        capture_output=True,
        text=True,
    )
    os.close(theirs)
    os.close(ours)
    assert "this removes 10 of 30 records of the log (bad 10)" in done.stderr
    assert "Remove them for good? [y/N]" in done.stderr
    assert done.returncode == (0 if left == 20 else 10)
    assert len(list(mixed.log.records())) == left


def test_a_version_that_was_trained_on_them_is_named_and_damage_is_pointed_at(call, mixed: DataDirectory) -> None:
    ids = [record.id for record in mixed.log.records() if record.source == "bad"]
    mixed.registry.create(write_adapter, {"record_ids": ids[:4], "trained_groups": ["0" * 16]})
    mixed.registry.promote("v0001")
    with mixed.log.path.open("ab") as file:
        file.write(b"damaged\n")
    found = call("log", "rm", "--source", "bad", "--yes")
    assert "v0001 (the champion) was trained on 4 of them\n" in found.err
    assert "`draftloop adapters promote none` puts the bare draft into use\n" in found.err
    assert "failures.jsonl.broken holds damaged lines" in found.err


def test_a_training_at_work_holds_a_removal_off(call, mixed: DataDirectory) -> None:
    with mixed.training_lock():
        found = call("log", "rm", "--source", "bad", "--yes")
        assert found.code == 13
        assert "is held by process" in found.err
        assert call("log", "rm", "--source", "bad", "--dry-run").code == 0


def test_where_a_server_trains_it_says_what_to_do_about_that(call, mixed: DataDirectory) -> None:
    """A training that waits for idle time may wait for hours, and a stopped process does not end by `kill`."""
    with mixed.training_lock(), mixed.presence.shown("retrain", "for the server"):
        found = call("log", "rm", "--source", "bad", "--yes")
    assert found.code == 13
    assert "for the server" in found.err
    assert "Stop the server" in found.err
    assert "end it" not in found.err
