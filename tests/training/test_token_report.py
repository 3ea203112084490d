"""The table of a training: ratios of sums by kind of token, what is missed most first."""

from __future__ import annotations

import numpy as np
import pytest
from builders import make_record

from draftloop.training.dataset.examples import to_example
from draftloop.training.token_report import (
    Counts,
    TokenKindRow,
    count,
    rejected_positions,
    rows_by_kind,
    sum_by_kind,
)


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


KINDS = ["word", "mark", "word", "word"]
AFTER = array(0.5, 0.75, 1.0, 0.75)  # refused: word 0.75 of 3, mark 0.25 of 1


def test_a_case_by_hand() -> None:
    found = rows_by_kind(KINDS, array(1, 0, 0, 1), {"word": 1.5, "mark": 0.25}, AFTER)
    assert found == (
        TokenKindRow("word", 3, 0.75, 2, 0.5, 0.75, 0.75),
        TokenKindRow("mark", 1, 0.25, 0, 0.25, 0.75, 0.25),
    )


def test_a_kind_of_many_easy_tokens_does_not_hide_one_of_few_hard_ones() -> None:
    """What is missed is a sum: a mean would put the lone hard token first, a count the easy ones."""
    kinds = ["easy"] * 10 + ["hard"] * 4 + ["lone"]
    after = array(*[0.95] * 10, *[0.25] * 4, 0.0)
    assert [row.kind for row in rows_by_kind(kinds, np.zeros(15), None, after)] == ["hard", "lone", "easy"]


def test_rows_beyond_the_limit_are_one_row_of_summed_counts_at_the_end() -> None:
    kinds = ["a", "b", "c", "d", "d"]
    after = array(0.0, 0.25, 0.5, 0.75, 0.5)
    found = rows_by_kind(kinds, array(0, 0, 1, 1, 0), sum_by_kind(kinds, array(0, 0, 0, 0.5, 1)), after, most=2)
    assert [row.kind for row in found] == ["a", "b", "other"]  # d has refused as much as b; names break the tie
    assert found[-1] == TokenKindRow("other", 3, 0.6, 2, 0.5, pytest.approx(1.75 / 3), pytest.approx(1.25 / 3))
    assert sum(row.remaining or 0 for row in found) == pytest.approx(1)
    assert sum(row.positions for row in found) == 5


def test_a_single_kind_beyond_the_limit_keeps_its_name() -> None:
    assert [row.kind for row in rows_by_kind(["a", "b", "c"], np.zeros(3), None, array(0, 0.1, 0.2), most=2)] == [
        *"abc"
    ]


def test_without_a_start_there_is_no_before() -> None:
    assert {row.acceptance_before for row in rows_by_kind(KINDS, np.zeros(4), None, AFTER)} == {None}


def test_where_nothing_is_refused_nobody_has_a_part_in_it() -> None:
    assert [row.remaining for row in rows_by_kind(["a", "b"], np.zeros(2), None, np.ones(2))] == [None, None]


def test_rejections_are_the_record_s_own_up_to_where_its_output_was_cut() -> None:
    record = make_record(target_output=(5, 6, 42, 8, 9, 43), draft_output=(5, 6, 7, 8, 9, 10))
    assert [found.position for found in record.disagreements] == [2, 5]
    whole, cut = ((to_example(record, most), record) for most in (100, 4))
    assert rejected_positions(whole).tolist() == [0, 0, 1, 0, 0, 1]
    assert rejected_positions(cut).tolist() == [0, 0, 1, 0]
    assert count([whole, cut]) == Counts(2, 10, 3)
    assert count([]) == Counts(0, 0, 0)
