"""The failure log: what is appended comes back, in order, from any number of writers."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from builders import RecordedSyncs, make_record

from draftloop.data.log import FailureLog
from draftloop.data.record_lines import from_body, to_line
from draftloop.data.records import Record, resume_key
from draftloop.data.splits import hashed_split
from draftloop.errors import LockedError, StoreError
from draftloop.store.lock import Lock
from draftloop.store.sealed_lines import RecordError, seal, unseal

WRITE = """
import sys
from pathlib import Path
from builders import make_record
from draftloop.data.log import FailureLog
log = FailureLog(Path(sys.argv[1]))
for i in range(int(sys.argv[3])):
    log.append(make_record(id=f"{int(sys.argv[2]):016x}{i:016x}", prompt=f"{sys.argv[2]} " + chr(97 + i) * i * 400))
"""


@pytest.fixture
def log(tmp_path: Path) -> FailureLog:
    return FailureLog(tmp_path / "failures" / "failures.jsonl")


def topics(count: int) -> Iterator[Record]:
    """Records of as many prompt groups."""
    return (make_record(prompt=f"topic {chr(0x4E00 + i)}") for i in range(count))


def test_what_is_appended_comes_back_in_order(log: FailureLog) -> None:
    appended = [log.append(record) for record in topics(5)]
    assert list(log.records()) == appended
    assert list(FailureLog(log.path).records()) == appended
    assert log.damage == []


def test_a_log_that_is_not_there_is_empty_and_reading_makes_nothing(log: FailureLog) -> None:
    assert list(log.records()) == []
    assert log.resume_keys() == {}
    assert not log.path.parent.exists()


def test_the_sources_of_a_log_are_those_of_its_whole_lines(log: FailureLog) -> None:
    assert log.sources() == set()
    for source in ("mail", "code", "mail"):
        log.append(make_record(source=source, messages=({"role": "user", "content": '{"source":"no"}'},)))
    with log.path.open("ab") as file:
        file.write(b'{"source":"torn"')
    assert log.sources() == {"mail", "code"}


def test_an_append_asks_for_a_full_sync_only_when_it_was_asked_to(log: FailureLog) -> None:
    for wanted in (False, True):
        files = RecordedSyncs()
        writer = FailureLog(log.path, files, full_sync=wanted)
        writer.append(make_record())
        files.full.clear()  # the first one makes the file and its directory
        writer.append(make_record())
        assert files.full == [wanted]


def test_everything_it_makes_is_private(log: FailureLog) -> None:
    log.append(make_record())
    with log.path.open("ab") as file:
        file.write(b"torn")
    log.repair()
    modes = {path.name: path.stat().st_mode & 0o777 for path in log.path.parent.iterdir()}
    assert modes == dict.fromkeys(["failures.jsonl", "failures.jsonl.lock", "failures.jsonl.broken"], 0o600)
    assert log.path.parent.stat().st_mode & 0o777 == 0o700


def test_the_split_that_a_record_came_with_is_replaced(log: FailureLog) -> None:
    splits = [log.append(replace(record, split="heldout")).split for record in topics(40)]
    groups = [record.group for record in log.records()]
    assert splits == ["train"] * 10 + [hashed_split(group) for group in groups[10:]]
    assert set(splits) == {"train", "validation", "heldout"}


def test_a_prompt_met_again_by_another_writer_keeps_its_split(log: FailureLog) -> None:
    first = {record.group: log.append(record).split for record in topics(40)}
    other = FailureLog(log.path)
    again = [make_record(prompt=f"  TOPIC {chr(0x4E00 + i)}", source="x", adapter="v0001") for i in range(39, -1, -1)]
    for writer, record in zip(itertools.cycle([log, other]), again, strict=False):
        assert writer.append(record).split == first[record.group]


def test_two_writers_share_the_first_ten_groups(log: FailureLog) -> None:
    other = FailureLog(log.path)
    heldout = [record for record in topics(200) if hashed_split(record.group) == "heldout"]
    splits = [writer.append(record).split for writer, record in zip([log, other] * 8, heldout, strict=False)]
    assert splits == ["train"] * 10 + ["heldout"] * 6


def test_records_of_other_splits_are_not_even_decoded(log: FailureLog, monkeypatch: pytest.MonkeyPatch) -> None:
    appended = [log.append(record) for record in topics(40)]
    decoded: list[str] = []

    def watched(body: bytes) -> Record:
        record = from_body(body)
        decoded.append(record.split)
        return record

    monkeypatch.setattr("draftloop.data.log.from_body", watched)
    wanted = {"train", "validation"}
    assert list(log.records(wanted)) == [record for record in appended if record.split in wanted]
    assert set(decoded) == wanted


def test_reading_holds_one_record_at_a_time_and_sees_what_is_appended_meanwhile(log: FailureLog) -> None:
    log.append(make_record())
    reading = log.records()
    next(reading)
    second = log.append(make_record())
    assert list(reading) == [second]


def test_an_unfinished_last_line_is_not_there_yet(log: FailureLog) -> None:
    first = log.append(make_record())
    line = to_line(make_record())
    with log.path.open("ab", buffering=0) as file:
        for byte in line[:-1]:
            file.write(bytes([byte]))
            assert list(log.records()) == [first]
            assert log.damage == []


def test_a_reader_is_not_fooled_by_a_torn_tail_that_is_replaced_under_its_buffer(log: FailureLog) -> None:
    first = log.append(make_record())
    with log.path.open("ab") as file:
        file.write(to_line(make_record(prompt="torn " * 4000))[:-9])
    reading = log.records()
    assert next(reading) == first  # and the reader's buffer now holds the start of the torn tail
    second = log.append(make_record(prompt="whole " * 5000))
    assert list(reading) == [second]
    assert log.damage == []


def test_a_record_that_contradicts_itself_writes_nothing(log: FailureLog) -> None:
    log.append(make_record())
    before = log.path.read_bytes()
    with pytest.raises(RecordError, match="log_p"):
        log.append(make_record(log_p=()))
    assert log.path.read_bytes() == before


def test_resume_keys_are_those_of_all_records(log: FailureLog) -> None:
    records = [log.append(make_record(prompt_tokens=(i,), run_seed=i % 2)) for i in range(5)]
    assert log.resume_keys() == {resume_key(record): None for record in records}


def test_a_resume_key_says_how_late_its_output_was_cut_at_most(log: FailureLog) -> None:
    def append(length: int, finish: str, seed: int) -> str:
        tokens = tuple(range(5, 5 + length))
        return resume_key(log.append(make_record(target_output=tokens, finish=finish, run_seed=seed)))

    cut, ended, also = append(4, "length", 1), append(3, "stop", 2), append(6, "length", 3)
    assert log.resume_keys() == {cut: 4, ended: None, also: 6}
    append(8, "length", 1)
    append(5, "length", 3)
    append(9, "length", 2)
    assert log.resume_keys() == {cut: 8, ended: None, also: 6}
    append(9, "stop", 3)
    assert log.resume_keys()[also] is None


def test_a_cancelled_generation_is_collected_again_unless_as_few_tokens_are_wanted(log: FailureLog) -> None:
    cancelled = log.append(make_record(target_output=(5, 6, 7), finish="cancelled", run_seed=1))
    nothing = log.append(make_record(target_output=(), finish="cancelled", run_seed=2))
    assert log.resume_keys() == {resume_key(cancelled): 3, resume_key(nothing): 0}


def test_a_log_of_a_newer_draftloop_is_neither_read_nor_written(log: FailureLog) -> None:
    log.append(make_record())
    newer = {**orjson.loads(unseal(to_line(make_record()))), "schema": 2}
    with log.path.open("ab") as file:
        file.write(seal(orjson.dumps(newer)))
    before = log.path.read_bytes()
    for attempt in (lambda: list(log.records()), lambda: log.append(make_record())):
        with pytest.raises(StoreError, match="schema 2"):
            attempt()
    assert log.path.read_bytes() == before


def test_a_log_that_was_deleted_starts_anew(log: FailureLog) -> None:
    for record in topics(12):
        log.append(record)
    log.path.unlink()
    unseen = itertools.islice(topics(200), 12, None)
    late = next(record for record in unseen if hashed_split(record.group) == "heldout")
    assert log.append(late).split == "train"
    assert len(list(log.records())) == 1


def test_an_append_gives_up_when_another_process_keeps_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = FailureLog(tmp_path / "f.jsonl")
    monkeypatch.setattr(log._lock, "timeout", 0)
    with Lock(tmp_path / "f.jsonl.lock"), pytest.raises(LockedError):
        log.append(make_record())


def test_several_processes_append_at_once_while_one_reads(log: FailureLog) -> None:
    writers, each = 3, 15
    command = [sys.executable, "-c", WRITE, str(log.path)]
    env = {"PYTHONPATH": ":".join(sys.path)}
    seen = 0
    with ExitStack() as stack:
        started = [subprocess.Popen([*command, str(w), str(each)], env=env) for w in range(writers)]
        processes = [stack.enter_context(process) for process in started]
        while any(process.poll() is None for process in processes):
            found = sum(1 for _ in log.records())
            assert found >= seen
            assert log.damage == []
            seen = found
    assert [process.returncode for process in processes] == [0] * writers
    ids = [record.id for record in log.records()]
    assert sorted(ids) == [f"{w:016x}{i:016x}" for w in range(writers) for i in range(each)]
    assert not log.path.with_name("failures.jsonl.broken").exists()


def test_lines_found_damaged_are_set_aside_once_each_and_stay_where_they_are(log: FailureLog) -> None:
    lines = [to_line(record) for record in topics(4)]
    damaged = [lines[1].replace(b"topic", b"tropic"), lines[2][:-1] + b"?\n"]
    log.path.parent.mkdir()
    log.path.write_bytes(b"".join([lines[0], *damaged, lines[3]]))
    before = log.path.read_bytes()
    assert len(list(log.records())) == 3  # the third is whole but for what stands behind it
    log.set_aside_damage()
    assert log.path.with_name("failures.jsonl.broken").read_bytes() == b"".join(damaged)
    assert log.path.read_bytes() == before
