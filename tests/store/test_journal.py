"""The journal: entries in order, numbered, whole or passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import failing_files

from draftloop.errors import StoreError
from draftloop.store.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "runs" / "audit.jsonl")


def test_a_journal_that_is_not_there_is_empty_and_reading_makes_nothing(journal: Journal) -> None:
    assert journal.entries() == []
    assert not journal.path.parent.exists()


def test_entries_come_back_in_order_with_their_sequence(journal: Journal) -> None:
    assert journal.append({"what": "one"}) == {"what": "one", "sequence": 1}
    journal.append({"what": "two", "when": 0.5})
    found = [(entry["sequence"], entry["what"]) for entry in journal.entries()]
    assert found == [(1, "one"), (2, "two")]
    assert journal.path.stat().st_mode & 0o777 == 0o600


def test_a_torn_line_is_passed_over_and_the_next_entry_is_whole(journal: Journal) -> None:
    journal.append({"what": "one"})
    whole = journal.path.read_bytes()
    for cut in range(1, len(whole)):
        journal.path.write_bytes(whole + whole[:cut])
        journal.append({"what": "two"})
        assert [entry["what"] for entry in journal.entries()] in (["one", "two"], ["one", "one", "two"])
        assert journal.damage == ([2] if cut < len(whole) - 1 else [])  # a lost newline alone loses nothing


def test_a_changed_line_is_passed_over_by_number(journal: Journal) -> None:
    for what in ("one", "two", "three"):
        journal.append({"what": what})
    journal.path.write_bytes(journal.path.read_bytes().replace(b"two", b"owt"))
    assert [entry["what"] for entry in journal.entries()] == ["one", "three"]
    assert journal.damage == [2]
    assert journal.append({"what": "four"})["sequence"] == 4


@pytest.mark.parametrize("step", range(1, 9))
def test_an_entry_that_fails_at_any_step_harms_no_earlier_one(tmp_path: Path, step: int) -> None:
    journal = Journal(tmp_path / "audit.jsonl")
    journal.append({"what": "one"})
    files = failing_files(step)
    broken = Journal(journal.path, files)
    if step <= 4:
        with pytest.raises(StoreError, match="No space left"):
            broken.append({"what": "two"})
    else:
        broken.append({"what": "two"})
        assert files.names == ["make_directory", "open", "write", "sync"]
    journal.append({"what": "three"})
    assert [entry["what"] for entry in journal.entries()][::2][0] == "one"
    assert journal.entries()[-1]["what"] == "three"
