"""Units: large sources by themselves, all others together, whatever their names."""

from __future__ import annotations

from draftloop.evaluation.units_and_levels import large_sources, unit_members, unit_name


def test_a_source_is_large_by_its_prompt_groups_and_not_by_its_outputs() -> None:
    many_outputs = [(f"g{i % 2}", "chat") for i in range(30)]
    many_groups = [(f"g{i}", "mail") for i in range(3)]
    assert large_sources([*many_outputs, *many_groups], 3) == ("mail",)


def test_what_is_not_large_is_the_rest_and_comes_last() -> None:
    sources = ["b", "z", "a", "b", "rest"]
    assert list(unit_members(sources, ["b", "a"]).items()) == [("a", [2]), ("b", [0, 3]), (None, [1, 4])]


def test_a_unit_without_an_output_is_none() -> None:
    assert unit_members(["a"], ["a", "gone"]) == {"a": [0]}
    assert unit_members([], ["a"]) == {}


def test_a_source_that_is_called_rest_is_not_the_rest() -> None:
    assert [unit_name(unit) for unit in ("rest", None)] == ["source rest", "the rest"]
