"""Verdicts and epochs: what was said stays said, and no candidate gets a second look for nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from builders import failing_files

from draftloop.config import Gate
from draftloop.data.records import PairId
from draftloop.errors import StoreError
from draftloop.registry.verdicts import Attempt, Epoch, Verdict, Verdicts
from draftloop.store.sealed_lines import dump, seal

PAIR = PairId("target", "draft", "tokenizer")
OTHER = PairId("other", "draft", "tokenizer")
IDS = ["1", "2", "3"]
GATE = Gate(min_heldout_prompts=2)


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
        pair=PAIR,
        numbers={"p_value": 0.4, "sources": [{"source": "chat"}]},
    )


def attempt(verdicts: Verdicts, version: str, champion: str | None = None, **changes: object) -> tuple[Epoch, int]:
    values = {"pair": PAIR, "settings": GATE, "present": groups(IDS), "draw": lambda number: IDS, **changes}
    made = Attempt(version, champion, f"files of {version}", champion and f"files of {champion}")
    return verdicts.open_attempt(made, **values)  # type: ignore[arg-type]


def groups(ids: list[str]) -> dict[str, str]:
    """Every record is of a prompt group of its own."""
    return {record_id: f"group {record_id}" for record_id in ids}


def test_a_version_without_a_verdict_has_none_and_asking_makes_nothing(verdicts: Verdicts) -> None:
    assert verdicts.of("v0001") is None
    assert verdicts.epoch(PAIR) is None
    assert not verdicts.root.exists()


def test_a_verdict_comes_back_with_all_its_numbers(verdicts: Verdicts) -> None:
    given = verdict("v0001")
    verdicts.give(given)
    assert verdicts.of("v0001") == given
    verdicts.withdraw("v0001")
    assert verdicts.of("v0001") is None


def test_a_promotion_by_hand_is_noted_unless_the_gate_gave_a_verdict(verdicts: Verdicts) -> None:
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
    assert attempt(Verdicts(verdicts.root), "v0001") == first == (verdicts.epoch(PAIR), 1)
    assert attempt(verdicts, "v0002")[1] == 2
    assert attempt(verdicts, "v0001")[1] == 1


def test_another_champion_makes_it_another_attempt(verdicts: Verdicts) -> None:
    attempt(verdicts, "v0002")
    assert attempt(verdicts, "v0002", "v0001")[1] == 2


def test_the_records_of_an_epoch_are_fixed_at_its_first_attempt(verdicts: Verdicts) -> None:
    attempt(verdicts, "v0001")
    epoch, number = attempt(verdicts, "v0002", present=groups([*IDS, "4"]), draw=lambda number: [*IDS, "4"])
    assert (epoch.number, number, epoch.record_ids) == (1, 2, tuple(IDS))


def test_an_epoch_ends_after_its_last_attempt_and_the_next_takes_what_was_collected_since(verdicts: Verdicts) -> None:
    for i in range(1, 6):
        assert attempt(verdicts, f"v000{i}")[1] == i
    assert attempt(verdicts, "v0005")[1] == 5
    epoch, number = attempt(verdicts, "v0006", present=groups([*IDS, "4"]), draw=lambda number: [str(number), "4"])
    assert (epoch.number, number, epoch.record_ids) == (2, 1, ("2", "4"))


def test_an_epoch_ends_at_a_promotion_of_its_own(verdicts: Verdicts) -> None:
    attempt(verdicts, "v0001")
    verdicts.give(verdict("v0001"))
    assert attempt(verdicts, "v0002")[1] == 2
    verdicts.give(verdict("v0002", "promoted", epoch=1, attempt=2))
    assert attempt(verdicts, "v0003", "v0002")[0].number == 2
    assert attempt(verdicts, "v0004", "v0002")[0].number == 2


def test_the_same_files_under_another_name_are_the_same_attempt(verdicts: Verdicts) -> None:
    attempt(verdicts, "v0001")
    again = Attempt("v0009", None, "files of v0001", None)
    assert verdicts.open_attempt(again, PAIR, GATE, groups(IDS), lambda _: IDS)[1] == 1
    other = Attempt("v0001", None, "other files of that name", None)
    assert verdicts.open_attempt(other, PAIR, GATE, groups(IDS), lambda _: IDS)[1] == 2


def test_every_target_has_an_epoch_of_its_own_and_its_drafts_share_it(verdicts: Verdicts) -> None:
    attempt(verdicts, "v0001")
    assert attempt(verdicts, "v0002", pair=OTHER)[1] == 1
    assert attempt(verdicts, "v0003", pair=PairId("target", "other draft", "tokenizer"))[1] == 2
    assert attempt(verdicts, "v0004", pair=OTHER)[1] == 2


def test_an_epoch_goes_on_without_a_record_that_is_gone(verdicts: Verdicts) -> None:
    attempt(verdicts, "v0001")
    epoch, number = attempt(verdicts, "v0002", present=groups(["1", "3"]))
    assert (epoch.number, number, epoch.record_ids) == (1, 2, ("1", "3"))
    epoch, number = attempt(verdicts, "v0003")
    assert (epoch.number, number, epoch.record_ids) == (1, 3, tuple(IDS))


def test_an_epoch_with_too_few_prompts_left_for_a_verdict_is_drawn_anew(verdicts: Verdicts) -> None:
    assert attempt(verdicts, "v0001", present=dict.fromkeys(IDS, "one group"))[0].number == 1
    assert attempt(verdicts, "v0001", present=dict.fromkeys(IDS, "one group"))[0].number == 2


def test_alpha_attempts_and_prompts_are_fixed_with_the_epoch(verdicts: Verdicts) -> None:
    fixed = {"alpha": 0.05, "max_attempts": 2, "min_heldout_prompts": 2}
    attempt(verdicts, "v0001", settings=Gate(**fixed))
    changed = {"alpha": 0.4, "max_attempts": 1, "min_heldout_prompts": 9}
    epoch, number = attempt(verdicts, "v0002", settings=Gate(**changed))
    assert (epoch.number, number, epoch.fixed) == (1, 2, fixed)
    epoch, number = attempt(verdicts, "v0003", settings=Gate(**changed))
    assert (epoch.number, number, epoch.fixed) == (2, 1, changed)


def test_a_promotion_for_another_target_ends_no_epoch_of_this_one(verdicts: Verdicts) -> None:
    attempt(verdicts, "v0001")
    attempt(verdicts, "v0002")
    attempt(verdicts, "v0002", pair=OTHER)
    verdicts.give(replace(verdict("v0002", "promoted"), pair=OTHER))
    assert attempt(verdicts, "v0003")[1] == 3
    assert attempt(verdicts, "v0003", pair=OTHER)[0].number == 2


def test_a_promotion_under_another_name_ends_the_epoch_too(verdicts: Verdicts) -> None:
    attempt(verdicts, "v0001")
    verdicts.give(verdict("v0001"))
    verdicts.open_attempt(Attempt("v0009", None, "files of v0001", None), PAIR, GATE, groups(IDS), lambda _: IDS)
    verdicts.give(verdict("v0009", "promoted"))
    assert attempt(verdicts, "v0010")[0].number == 2


def test_a_lost_epoch_keeps_what_was_fixed_with_it(verdicts: Verdicts) -> None:
    epoch, _ = attempt(verdicts, "v0001")
    verdicts.give(replace(verdict("v0001"), numbers={"epoch": epoch.fixed}))
    shutil.rmtree(verdicts.root / "epochs")
    again, number = attempt(verdicts, "v0002", settings=Gate(alpha=0.49, min_heldout_prompts=3))
    assert (again.number, number, again.fixed) == (1, 2, epoch.fixed)


def remove(path: Path) -> None:
    path.unlink()


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("lose_file", [remove, damage])
def test_a_lost_epoch_goes_on_where_the_verdicts_say_that_it_was(
    verdicts: Verdicts, lose_file: Callable[[Path], None]
) -> None:
    for i in range(1, 4):
        attempt(verdicts, f"v000{i}")
        verdicts.give(verdict(f"v000{i}", attempt=i))
    attempt(verdicts, "v0004", pair=OTHER)
    for path in (verdicts.root / "epochs").iterdir():
        lose_file(path)
    assert attempt(verdicts, "v0005", pair=OTHER)[1] == 1
    epoch, number = attempt(verdicts, "v0005")
    assert (epoch.number, number, epoch.lost) == (1, 4, 3)
    assert attempt(verdicts, "v0006")[1] == 5
    assert attempt(verdicts, "v0007")[0].number == 2


def test_a_lost_epoch_that_ended_with_a_promotion_has_ended(verdicts: Verdicts) -> None:
    attempt(verdicts, "v0001")
    verdicts.give(verdict("v0001", "promoted"))
    shutil.rmtree(verdicts.root / "epochs")
    epoch, number = attempt(verdicts, "v0002")
    assert (epoch.number, number, epoch.lost) == (2, 1, 0)


def test_a_damaged_verdict_of_an_earlier_attempt_stops_no_later_one(verdicts: Verdicts) -> None:
    attempt(verdicts, "v0001")
    verdicts.give(verdict("v0001"))
    (verdicts.root / "verdicts" / "v0001.json").write_bytes(b"?")
    assert attempt(verdicts, "v0002")[1] == 2


def test_an_epoch_of_a_newer_draftloop_is_not_written_over(verdicts: Verdicts) -> None:
    epoch, _ = attempt(verdicts, "v0001")
    (path,) = (verdicts.root / "epochs").iterdir()
    path.write_bytes(seal(dump(epoch).replace(b'"schema":1', b'"schema":2')))
    before = path.read_bytes()
    with pytest.raises(StoreError, match="has schema 2; this draftloop reads schemas up to 1"):
        attempt(verdicts, "v0002")
    assert path.read_bytes() == before


@pytest.mark.parametrize("step", range(1, 9))
def test_an_attempt_that_cannot_be_written_is_none(verdicts: Verdicts, step: int) -> None:
    attempt(verdicts, "v0001")
    before = verdicts.epoch(PAIR)
    files = failing_files(step)
    try:
        attempt(Verdicts(verdicts.root, files), "v0002")
    except StoreError:
        after = verdicts.epoch(PAIR)
        assert after == before or (after is not None and len(after.attempts) == 2 and step >= 6)
    else:
        assert len(files.names) < step
    assert attempt(verdicts, "v0002")[1] == 2


def open_ids(verdicts: Verdicts) -> list[tuple[str, ...]]:
    return [epoch.record_ids for epoch in verdicts.open_epochs()]


def test_an_epoch_is_open_from_its_first_attempt_to_a_promotion(verdicts: Verdicts) -> None:
    assert verdicts.open_epochs() == []
    attempt(verdicts, "v0001")
    assert open_ids(verdicts) == [tuple(IDS)]
    verdicts.give(verdict("v0001"))
    attempt(verdicts, "v0002")
    assert open_ids(verdicts) == [tuple(IDS)]
    verdicts.give(verdict("v0002", "promoted", attempt=2))
    assert open_ids(verdicts) == []


def test_an_epoch_is_open_until_its_last_attempt_has_a_verdict(verdicts: Verdicts) -> None:
    for number in range(1, 6):
        attempt(verdicts, f"v000{number}")
        assert open_ids(verdicts) == [tuple(IDS)]
        verdicts.give(verdict(f"v000{number}", attempt=number))
    assert open_ids(verdicts) == []


def test_a_damaged_epoch_holds_no_record_and_each_target_has_its_own(verdicts: Verdicts) -> None:
    attempt(verdicts, "v0001")
    attempt(verdicts, "v0002", pair=OTHER, present=groups(["9", "8"]), draw=lambda number: ["9", "8"])
    assert sorted(open_ids(verdicts)) == [tuple(IDS), ("9", "8")]
    next((verdicts.root / "epochs").iterdir()).write_bytes(b"?")
    assert len(open_ids(verdicts)) == 1
