"""Which tokens a draft may propose is chosen once, the most used ones first, and kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.errors import StoreError
from draftloop.models.draft_vocabulary import FILE, DraftVocabulary, DraftVocabularyFile, VocabularyTrial, most_used

CHOSEN = DraftVocabulary((1, 5, 9), "lm_head", "they pay", (VocabularyTrial(3, 0.001, 0.6, 3, 1.2),))
WHOLE = DraftVocabulary((), "lm_head", "all pay")


def test_the_most_used_come_first_then_the_lowest() -> None:
    counts = Counter({7: 5, 3: 2, 9: 2, 1: 1})
    assert most_used(counts, frozenset(), 2, 12) == (3, 7)
    assert most_used(counts, frozenset({11}), 3, 12) == (3, 7, 11)
    assert most_used(counts, frozenset(), 6, 12) == (0, 1, 2, 3, 7, 9)


def test_what_both_models_do_not_have_is_never_among_them() -> None:
    assert most_used(Counter({50: 9, 2: 1}), frozenset({60}), 2, 12) == (0, 2)


@given(
    st.dictionaries(st.integers(0, 40), st.integers(1, 9)),
    st.frozensets(st.integers(0, 40), max_size=3),
    st.integers(3, 30),
)
def test_there_are_as_many_as_asked_for(counts: dict[int, int], always: frozenset[int], size: int) -> None:
    chosen = most_used(Counter(counts), always, size, 30)
    assert len(chosen) == size
    assert chosen == tuple(sorted(set(chosen)))
    assert {token for token in always if token < 30} <= set(chosen) <= set(range(30))
    left_out = [count for token, count in counts.items() if token not in chosen and token < 30]
    used = [counts.get(token, 0) for token in chosen if token not in always]
    assert max(left_out, default=0) <= min(used, default=max(left_out, default=0))


def test_what_is_kept_comes_back_and_stays(tmp_path: Path) -> None:
    file = DraftVocabularyFile(tmp_path)
    assert file.of("a") is None
    file.keep("a", CHOSEN)
    file.keep("b", WHOLE)
    file.keep("a", WHOLE)
    assert DraftVocabularyFile(tmp_path).of("a") == CHOSEN
    assert DraftVocabularyFile(tmp_path).of("b") == WHOLE
    assert (CHOSEN.is_whole, WHOLE.is_whole) == (False, True)


def test_reading_makes_nothing(tmp_path: Path) -> None:
    DraftVocabularyFile(tmp_path / "none").of("a")
    assert not (tmp_path / "none").exists()


def test_damage_is_named(tmp_path: Path) -> None:
    file = DraftVocabularyFile(tmp_path)
    file.keep("a", CHOSEN)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes().replace(b"5", b"6", 1))
    with pytest.raises(StoreError, match=r"is damaged.*chosen anew"):
        file.of("a")
