"""Names of sources from outside: their form and their number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.serving.sources import OTHER, Sources, is_source


@pytest.mark.parametrize("name", ["a", "open-webui", "Ann@desk", "team/ann", "c++", "v1.2_3", "x" * 64])
def test_a_name_of_a_source(name: str) -> None:
    assert is_source(name)


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "../x", "a\n", "é", "a:b", "x" * 65, "a\0"])
def test_no_name_of_a_source(name: str) -> None:
    assert not is_source(name)


def test_new_names_beyond_the_most_are_other_and_known_ones_stay() -> None:
    sources = Sources(["ann", "bob"], 3)
    assert [sources.fold(name) for name in ("new", "newer", "ann", "new", "newest", "bob")] == [
        *("new", OTHER, "ann", "new", OTHER, "bob")
    ]


def test_more_known_names_than_the_most_are_all_kept() -> None:
    sources = Sources(["ann", "bob"], 1)
    assert [sources.fold(name) for name in ("ann", "bob", "carl")] == ["ann", "bob", OTHER]


@given(names=st.lists(st.text("abcdef", min_size=1, max_size=2)), most=st.integers(1, 5))
def test_there_are_never_more_names_than_the_most_and_other(names: list[str], most: int) -> None:
    sources = Sources([], most)
    folded = [sources.fold(name) for name in names]
    assert len(set(folded) - {OTHER}) <= most
    assert all(result in (name, OTHER) for name, result in zip(names, folded, strict=True))


def test_what_a_log_knows_counts_and_is_never_folded() -> None:
    sources = Sources(["ann"], 3)
    sources.know(["bob", "carl", "dora"])
    assert [sources.fold(name) for name in ("dora", "eve")] == ["dora", OTHER]
