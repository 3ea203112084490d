"""When a promoted draft is looked at, on what, and what each look may spend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from draftloop.evaluation.drift import LoggedGeneration, StreamKey
from draftloop.evaluation.looks import Look, NewOutput, Watching, due_looks, new_outputs
from draftloop.evaluation.units_and_levels import alpha_of_attempt

WATCHING = Watching(
    sequence=1,
    champion="v0001",
    previous=None,
    sources=("chat", "mail"),
    mark=("old",),
    least=12,
    looks=5,
    alpha=0.025,
)


def outputs(groups: int, source: str = "chat", each: int = 1) -> list[NewOutput]:
    return [NewOutput(f"{source} {g} {i}", f"{source} {g}", source) for g in range(groups) for i in range(each)]


def looked(watching: Watching, looks: Sequence[Look]) -> Watching:
    done = tuple(replace(look, p_value=0.5, record_ids=()) for look in looks)
    return replace(watching, made=(*watching.made, *done))


def test_the_looks_at_a_unit_come_at_12_24_48_96_and_192_new_groups_and_no_more() -> None:
    watching, at = WATCHING, []
    for groups in range(1, 500):
        looks = due_looks(watching, outputs(groups), alarm=False)
        at += [(look.kind, look.unit, look.groups) for look in looks]
        watching = looked(watching, looks)
    assert at == [("look", "chat", groups) for groups in (12, 24, 48, 96, 192)]


def test_looks_and_checks_spend_no_more_than_their_levels_in_all() -> None:
    """Over three units (two sources and the rest), however the prompts arrive, and with an alarm all the time."""
    watching = WATCHING
    for groups in range(1, 800):
        new = [one for source in ("chat", "mail", "news") for one in outputs(groups, source)]
        looks = due_looks(watching, new, alarm=True)
        watching = looked(watching, looks)
    counts = Counter(look.kind for look in watching.made)
    assert counts == {"look": 3 * 5, "check": 3 * 7, "check of all": 8}  # at 12, 24, …, 768, and at 1,536 of 2,397
    looks, checks = (
        sum(one.alpha for one in watching.made if (one.kind == "look") == is_look) for is_look in (True, False)
    )
    assert looks == pytest.approx(WATCHING.alpha)
    assert 0.9 * WATCHING.alpha < checks < WATCHING.alpha


def test_every_look_has_the_same_share_whenever_it_comes() -> None:
    """A hundred groups at once are one look; the next needs twice as many."""
    (first,) = due_looks(WATCHING, outputs(100), alarm=False)
    assert (first.groups, first.alpha) == (100, WATCHING.alpha / 5 / 3)
    watching = looked(WATCHING, [first])
    assert due_looks(watching, outputs(199), alarm=False) == []
    (second,) = due_looks(watching, outputs(200), alarm=False)
    assert second.alpha == first.alpha


def test_groups_are_counted_and_all_their_outputs_are_looked_at() -> None:
    assert due_looks(WATCHING, outputs(11, each=5), alarm=False) == []
    (look,) = due_looks(WATCHING, outputs(12, each=5), alarm=False)
    assert (look.groups, len(look.record_ids)) == (12, 60)


def test_new_sources_join_the_rest() -> None:
    new = [one for i in range(4) for one in outputs(3, f"2026-11-{i + 1}")]
    (look,) = due_looks(WATCHING, new, alarm=False)
    assert (look.unit, look.groups) == (None, 12)


def test_an_alarm_checks_every_unit_and_everything_together_with_levels_of_their_own() -> None:
    new = outputs(7) + outputs(7, "mail")
    assert due_looks(WATCHING, new, alarm=False) == []
    (check,) = due_looks(WATCHING, new, alarm=True)
    assert (check.kind, check.unit, check.groups) == ("check of all", None, 14)
    assert check.alpha == alpha_of_attempt(1, WATCHING.alpha / 4)
    assert due_looks(looked(WATCHING, [check]), new, alarm=True) == []
    looks = due_looks(WATCHING, outputs(12), alarm=True)
    assert [(look.kind, look.unit) for look in looks] == [("look", "chat"), ("check", "chat"), ("check of all", None)]


def test_a_look_that_was_cut_off_is_made_as_it_was_begun() -> None:
    (look,) = due_looks(WATCHING, outputs(12), alarm=False)
    begun = replace(WATCHING, made=(look,))
    assert due_looks(begun, outputs(40), alarm=True) == [look]


@pytest.mark.parametrize("looks", [0, 2])
def test_there_are_as_many_looks_as_are_wanted(looks: int) -> None:
    watching = replace(WATCHING, looks=looks)
    for groups in range(1, 200):
        watching = looked(watching, due_looks(watching, outputs(groups), alarm=False))
    assert len(watching.made) == looks


def generation(name: str, group: str, split: str) -> LoggedGeneration:
    key = StreamKey("t", "d", "chat", "rejection", 0.8, 1.0, 0.0, 0)
    return LoggedGeneration(name, key, group, None, 0.5, split)  # type: ignore[arg-type]


def test_new_are_held_out_prompts_alone_that_were_not_there_before() -> None:
    stream = [
        generation("a", "known", "heldout"),
        generation("old", "trained", "train"),
        generation("b", "known", "heldout"),
        generation("c", "new", "heldout"),
        generation("d", "another", "train"),
        generation("e", "chosen by", "validation"),
        generation("f", "new", "heldout"),
    ]
    assert new_outputs(stream, ("old",)) == [NewOutput("c", "new", "chat"), NewOutput("f", "new", "chat")]
    assert [one.id for one in new_outputs(stream, ())] == ["a", "b", "c", "f"]
    assert new_outputs(stream, ("gone",)) == []  # nobody knows any more what was there


def test_a_prompt_of_which_generations_were_dropped_is_not_new() -> None:
    key = StreamKey("t", "d", "chat", "rejection", 0.8, 1.0, 0.0, 0)
    stream = [LoggedGeneration(f"{i}", key, f"{i}", None, 0.5, "heldout", came_before=i == 2) for i in range(4)]
    assert [one.id for one in new_outputs(stream, ["0"])] == ["1", "3"]
