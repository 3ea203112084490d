"""A kill during an append of the log: a file cut anywhere is repaired, and no byte of its tail is thrown away."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import NO_SYNC, failing_files, make_record
from fault_table import Row
from log_files import broken, filled, put, read

from draftloop.data.log import FailureLog
from draftloop.data.record_lines import to_line
from draftloop.data.records import PairId
from draftloop.errors import StoreError

pytestmark = pytest.mark.row("kill during a log append")

NEW = 10  # appended after every cut


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "failures.jsonl"


def test_a_cut_at_any_byte_of_the_last_three_records_loses_at_most_the_torn_one(path: Path, row: Row) -> None:
    kept = filled(path, 5, target_output=(5,), pair=PairId("t", "d", "k"))  # short lines: there is a cut at each byte
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    borders = {min(end + shift, len(whole)) for end in ends[1:] for shift in (-2, -1, 0, 1)}
    cuts = sorted(borders.union(range(ends[1], ends[4] + 1, row.count(13, 1))))
    for cut in cuts:
        put(path, whole[:cut])
        broken(path).unlink(missing_ok=True)
        log = FailureLog(path, NO_SYNC)
        new = [log.append(make_record()) for _ in range(NEW)]
        lacks_only_newline = cut + 1 in ends
        complete = sum(end <= cut for end in ends) + lacks_only_newline
        assert read(path) == kept[:complete] + new
        torn = b"" if lacks_only_newline else whole[max(end for end in ends if end <= cut) : cut]
        assert broken(path).exists() == bool(torn)
        if torn:
            assert broken(path).read_bytes() == torn + b"\n"
    row.did(len(cuts), "cuts")
    row.did(len(cuts) * NEW, "records appended after them and read back")


def test_an_append_that_does_not_repair_first_would_lose_its_record(path: Path) -> None:
    """The broken version that the test above must catch."""
    filled(path, 2)
    path.write_bytes(path.read_bytes()[:-9])
    with path.open("ab") as file:
        file.write(to_line(make_record()))
    log = FailureLog(path)
    list(log.records())
    assert [damage.line_number for damage in log.damage] == [2]


def test_torn_tails_gather_in_the_broken_file(path: Path) -> None:
    filled(path, 1)
    for tail in (b"first", b"second"):
        with path.open("ab") as file:
            file.write(tail)
        FailureLog(path).repair()
    assert broken(path).read_bytes() == b"first\nsecond\n"


def test_a_tail_of_zeros_after_a_power_loss_is_set_aside(path: Path) -> None:
    kept = filled(path, 2)
    with path.open("ab") as file:
        file.write(bytes(5000))
    new = FailureLog(path).append(make_record())
    assert read(path) == [*kept, new]


def test_a_writer_that_is_still_open_repairs_what_another_one_tore(path: Path) -> None:
    log = FailureLog(path)
    first = log.append(make_record())
    with path.open("ab") as file:
        file.write(to_line(make_record())[:100])
    second = log.append(make_record())
    assert read(path) == [first, second]


def test_a_repair_that_fails_at_any_step_loses_no_byte_of_the_tail(path: Path, row: Row) -> None:
    kept = filled(path, 2)
    whole = path.read_bytes()
    steps = ["make_directory", "open", "open", "write", "sync", "sync_directory", "sync", "truncate", "sync"]
    for step in range(1, len(steps) + 1):
        put(path, whole + b"torn")
        broken(path).unlink(missing_ok=True)
        files = failing_files(step)
        with pytest.raises(StoreError, match="No space left"):
            FailureLog(path, files).repair()
        set_aside = broken(path).read_bytes() if broken(path).exists() else b""
        assert files.names == steps[:step]
        assert path.read_bytes() == whole + b"torn" or set_aside == b"torn\n"
        FailureLog(path).repair()
        assert read(path) == kept
    row.did(len(steps), "repairs that failed")
