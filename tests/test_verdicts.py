"""Verdicts and epochs: what was said stays said, and no candidate gets a second look for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import failing_files

from draftloop.errors import StoreError
from draftloop.records import PairId
from draftloop.verdicts import Attempt, Epoch, Verdict, Verdicts

PAIR = PairId("target", "draft", "tokenizer")
IDS = ["1", "2", "3"]


@pytest.fixture
def verdicts(tmp_path: Path) -> Verdicts:
    return Verdicts(tmp_path / "adapters")


def verdict(version: str, outcome: str = "refused", epoch: int = 1, attempt: int = 1) -> Verdict:
    return Verdict(
        version=version,
        champion=None,
        outcome=outcome,  # type: ignore[arg-type]
        reasons=("p = 0.4 is above 0.03",),
        epoch=epoch,
        attempt=attempt,
        pointer=0,
        when=12.5,
        numbers={"p_value": 0.4, "sources": [{"source": "chat"}]},
    )


def attempt(verdicts: Verdicts, version: str, champion: str | None = None, **changes: object) -> tuple[Epoch, int]:
    values = {"pair": PAIR, "max_attempts": 5, "present": IDS, "draw": lambda number: IDS, **changes}
    return verdicts.open_attempt(Attempt(version, champion), **values)  # type: ignore[arg-type]


def test_a_version_without_a_verdict_has_none_and_asking_makes_nothing(verdicts: Verdicts) -> None:
    assert verdicts.of("v0001") is None
    assert verdicts.epoch() is None
    assert not verdicts.root.exists()


def test_a_verdict_comes_back_with_all_its_numbers(verdicts: Verdicts) -> None:
    given = verdict("v0001")
    verdicts.give(given)
    assert verdicts.of("v0001") == given
    verdicts.withdraw("v0001")
    assert verdicts.of("v0001") is None


def test_a_promotion_by_hand_is_noted_unless_the_gate_has_judged(verdicts: Verdicts) -> None:
    verdicts.give_by_hand("v0001", None, 0, "it talks better")
    found = verdicts.of("v0001")
    assert found is not None
    assert (found.outcome, found.reasons, found.epoch) == ("by hand", ("it talks better",), 0)
    verdicts.give(verdict("v0002"))
    verdicts.give_by_hand("v0002", None, 0, "by hand")
    assert verdicts.of("v0002") == verdict("v0002")


def test_a_changed_verdict_is_refused_and_names_the_file(verdicts: Verdicts) -> None:
    verdicts.give(verdict("v0001"))
    path = verdicts.root / "verdicts" / "v0001.json"
    path.write_bytes(path.read_bytes().replace(b"refused", b"promoted"))
    with pytest.raises(StoreError, match=r"v0001\.json is damaged"):
        verdicts.of("v0001")


def test_the_same_candidate_against_the_same_champion_is_the_same_attempt(verdicts: Verdicts) -> None:
    first = attempt(verdicts, "v0001")
    assert attempt(Verdicts(verdicts.root), "v0001") == first == (verdicts.epoch(), 1)
    assert attempt(verdicts, "v0002")[1] == 2
    assert attempt(verdicts, "v0001")[1] == 1


def test_another_champion_makes_it_another_attempt(verdicts: Verdicts) -> None:
    attempt(verdicts, "v0002")
    assert attempt(verdicts, "v0002", "v0001")[1] == 2


def test_the_records_of_an_epoch_are_fixed_at_its_first_attempt(verdicts: Verdicts) -> None:
    attempt(verdicts, "v0001")
    epoch, number = attempt(verdicts, "v0002", present=[*IDS, "4"], draw=lambda number: [*IDS, "4"])
    assert (epoch.number, number, epoch.record_ids) == (1, 2, tuple(IDS))


def test_an_epoch_ends_after_its_last_attempt_and_the_next_takes_what_was_collected_since(verdicts: Verdicts) -> None:
    for i in range(1, 6):
        assert attempt(verdicts, f"v000{i}")[1] == i
    assert attempt(verdicts, "v0005")[1] == 5
    epoch, number = attempt(verdicts, "v0006", present=[*IDS, "4"], draw=lambda number: [str(number), "4"])
    assert (epoch.number, number, epoch.record_ids) == (2, 1, ("2", "4"))


def test_an_epoch_ends_at_a_promotion_of_its_own(verdicts: Verdicts) -> None:
    attempt(verdicts, "v0001")
    verdicts.give(verdict("v0001"))
    assert attempt(verdicts, "v0002")[1] == 2
    verdicts.give(verdict("v0002", "promoted", epoch=1, attempt=2))
    assert attempt(verdicts, "v0003", "v0002")[0].number == 2
    assert attempt(verdicts, "v0004", "v0002")[0].number == 2


def test_records_of_another_pair_or_that_were_deleted_make_a_new_epoch(verdicts: Verdicts) -> None:
    attempt(verdicts, "v0001")
    assert attempt(verdicts, "v0002", pair=PairId("target", "other draft", "tokenizer"))[0].number == 1
    assert attempt(verdicts, "v0003", pair=PairId("other", "draft", "tokenizer"))[0].number == 2
    assert attempt(verdicts, "v0004", present=["1", "2"], pair=PairId("other", "draft", "tokenizer"))[0].number == 3


@pytest.mark.parametrize("step", range(1, 9))
def test_an_attempt_that_cannot_be_written_is_none(verdicts: Verdicts, step: int) -> None:
    attempt(verdicts, "v0001")
    before = verdicts.epoch()
    files = failing_files(step)
    try:
        attempt(Verdicts(verdicts.root, files), "v0002")
    except StoreError:
        after = verdicts.epoch()
        assert after == before or (after is not None and len(after.attempts) == 2 and step >= 6)
    else:
        assert len(files.names) < step
    assert attempt(verdicts, "v0002")[1] == 2
