"""Damage in the middle of the log: every flipped bit is reported by its line, and the rest is read."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from builders import make_record
from fault_table import Row
from log_files import broken, filled, put, read

from draftloop.data.log import FailureLog
from draftloop.data.record_lines import to_line

pytestmark = pytest.mark.row("damage in the middle of a log")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "failures.jsonl"


def test_every_bit_flip_is_reported_by_line_and_the_rest_is_read(path: Path, row: Row) -> None:
    records = filled(path, 8)
    whole = path.read_bytes()
    choose = random.Random(1)
    newlines = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    flips = row.count(400, 10_000)
    for place in [choose.randrange(len(whole)) for _ in range(flips)] + newlines:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << choose.randrange(8)
        put(path, bytes(flipped))
        line = whole.count(b"\n", 0, place)
        log = FailureLog(path)
        found = list(log.records())
        lost = [] if place in newlines else [records[line]]
        assert found == [record for record in records if record not in lost]
        assert log.damage
        assert log.damage[0].line_number == line + 1
        assert log.damage[0].offset == (newlines[line - 1] + 1 if line else 0)
    row.did(flips + len(newlines), "flipped bits")


def test_a_writer_keeps_a_record_whose_newline_was_damaged(path: Path) -> None:
    kept = filled(path, 2)
    path.write_bytes(path.read_bytes()[:-1] + b"\x0b")
    new = FailureLog(path).append(make_record())
    assert read(path) == [*kept, new]
    assert broken(path).read_bytes() == b"\x0b\n"


def test_damage_in_the_middle_does_not_stop_a_writer(path: Path) -> None:
    kept = filled(path, 3)
    damaged = bytearray(path.read_bytes())
    damaged[len(to_line(kept[0])) + 50] ^= 1
    path.write_bytes(damaged)
    new = FailureLog(path).append(make_record())
    log = FailureLog(path)
    assert list(log.records()) == [kept[0], kept[2], new]
    assert [damage.line_number for damage in log.damage] == [2]
    assert path.read_bytes().startswith(damaged)
