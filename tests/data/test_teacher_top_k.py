"""Distributions come back from their bytes as they were, and no other bytes pass for them unnoticed."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftloop.data.teacher_top_k import (
    MAGIC,
    DistributionsError,
    TopK,
    check_top_k,
    concatenate_top_k,
    decode_top_k,
    encode_top_k,
    within_width,
)
from draftloop.errors import StoreError


def top_k(rows: int, k: int, seed: int = 0, width: int = 100, narrow: bool = False) -> TopK:
    """Rows of real distributions over `width` ids; `narrow` leaves some of them fewer than `k` ids with mass."""
    choose = np.random.default_rng(seed)
    log_probs = np.log(choose.dirichlet(np.full(width, 0.3), rows) + 1e-30)
    ids = np.argsort(-log_probs, axis=1)[:, :k].astype(np.int32)
    kept = np.take_along_axis(log_probs, ids, axis=1)
    if narrow:
        left = np.arange(k) < choose.integers(1, k + 1, (rows, 1))
        kept = np.where(left, kept - np.log(np.where(left, np.exp(kept), 0).sum(axis=1, keepdims=True)), -np.inf)
        ids = np.where(left, ids, 0).astype(np.int32)
    kept = np.minimum(kept, 0).astype(np.float32)
    tail = np.clip(1 - np.exp(kept).sum(axis=1), 0, 1).astype(np.float32)
    return TopK(ids, kept, tail)


def assert_same(found: TopK, expected: TopK) -> None:
    """Bit for bit but for columns without mass, which bytes do not keep."""
    width = min(found.k, expected.k)
    for one in (found, expected):
        assert not np.isfinite(one.log_probs[:, width:]).any()
    np.testing.assert_array_equal(found.tokens[:, :width], expected.tokens[:, :width])
    np.testing.assert_array_equal(found.log_probs[:, :width], expected.log_probs[:, :width])
    np.testing.assert_array_equal(found.tail, expected.tail)
    assert (found.tokens.dtype, found.log_probs.dtype, found.tail.dtype) == (np.int32, np.float32, np.float32)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 40), st.booleans())
def test_what_is_encoded_comes_back(seed: int, positions: int, k: int, narrow: bool) -> None:
    before = top_k(positions, k, seed, narrow=narrow)
    after = decode_top_k(encode_top_k(before))
    assert_same(after, before)
    assert encode_top_k(after) == encode_top_k(before)


def test_what_comes_back_may_be_changed() -> None:
    decode_top_k(encode_top_k(top_k(9, 4))).log_probs[0, 0] = -1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_bytes_cut_anywhere_or_grown_are_refused(seed: int, narrow: bool) -> None:
    data = encode_top_k(top_k(3, 2, seed, narrow=narrow))
    for cut in range(len(data)):
        with pytest.raises(DistributionsError):
            decode_top_k(data[:cut])
    with pytest.raises(DistributionsError, match=f"expected {len(data)} by the counts"):
        decode_top_k(data + b"\0")


def test_thousands_of_changed_bytes_are_refused_or_give_something_valid() -> None:
    """Not every change can be seen here; the checksum is the business of the file."""
    choose, refused, changes = random.Random(0), 0, 4000
    for number in range(changes):
        data = bytearray(encode_top_k(top_k(9, 4, number % 50, narrow=number % 2 == 0)))
        for _ in range(choose.choice([1, 1, 2, 8])):
            data[choose.randrange(len(data))] ^= choose.randrange(1, 256)
        try:
            found = decode_top_k(bytes(data))
        except DistributionsError:
            refused += 1
        else:
            assert_valid(found)
    assert changes / 2 < refused < changes


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_at_all_are_refused_with_the_one_error(data: bytes, headed: bool) -> None:
    with pytest.raises(DistributionsError):
        decode_top_k(MAGIC + b"\1\0\0\0" + b"\2\0\0\0" + data if headed else data)
    assert issubclass(DistributionsError, StoreError)


def assert_valid(found: TopK) -> None:
    mass = np.exp(found.log_probs.astype(np.float64)).sum(axis=1) + found.tail
    np.testing.assert_allclose(mass, 1.0, atol=0.02)
    assert (found.tokens >= 0).all()
    for ids, log_probs in zip(found.tokens, found.log_probs, strict=True):
        kept = ids[np.isfinite(log_probs)]
        assert len(set(kept.tolist())) == len(kept) > 0


def test_a_newer_version_is_refused_with_advice() -> None:
    data = bytearray(encode_top_k(top_k(9, 4)))
    data[4] = 2
    with pytest.raises(DistributionsError, match="found version 2, this draftloop reads version 1; update it"):
        decode_top_k(bytes(data))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows.log_probs.__setitem__((2, 0), np.nan), "row 2 of 9 has log-prob.* no numbers"),
        (lambda rows: rows.log_probs.__setitem__((2, 0), 0.5), "row 2 of 9 has log-prob.* no numbers"),
        (lambda rows: rows.log_probs.__setitem__(2, -np.inf), "row 2 of 9 has no token with mass"),
        (lambda rows: rows.log_probs.__setitem__(2, rows.log_probs[2, ::-1]), "do not descend"),
        (lambda rows: rows.tokens.__setitem__((2, 1), -1), "row 2 of 9 has a negative token"),
        (lambda rows: rows.tokens.__setitem__((2, 1), rows.tokens[2, 0]), "row 2 of 9 has a token twice"),
        (lambda rows: rows.tail.__setitem__(2, -0.001), "row 2 of 9 has a tail outside"),
        (lambda rows: rows.tail.__setitem__(2, np.nan), "row 2 of 9 has a tail outside"),
        (lambda rows: rows.log_probs.__isub__(0.5), "row 0 of 9 has a mass that is not 1"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(change: object, problem: str) -> None:
    rows = top_k(9, 4)
    change(rows)  # type: ignore[operator]
    for look in (check_top_k, encode_top_k):
        with pytest.raises(DistributionsError, match=problem):
            look(rows)


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    rows = top_k(9, 4)
    for wrong in (TopK(rows.tokens[:8], rows.log_probs, rows.tail), TopK(rows.tokens, rows.log_probs, rows.tail[:8])):
        with pytest.raises(DistributionsError, match="found shapes"):
            check_top_k(wrong)


def test_a_one_hot_row_costs_sixteen_bytes() -> None:
    def one_hot(count: int) -> TopK:
        ids, zeros = np.arange(count, dtype=np.int32)[:, None], np.zeros((count, 1), np.float32)
        return TopK(ids, zeros, np.zeros(count, np.float32))

    assert len(encode_top_k(one_hot(11))) - len(encode_top_k(one_hot(1))) == 160


def test_rows_are_cut_and_joined_as_lists_are() -> None:
    rows = top_k(9, 4)
    assert len(rows[2:5]) == 3
    assert_same(concatenate_top_k([rows[:2], rows[2:2], rows[2:]]), rows)


def test_ids_that_a_narrower_draft_does_not_know_go_to_the_tail():
    rows = top_k(9, 6, narrow=True)
    found = within_width(rows, 50)
    assert found.tokens.max() < 50
    np.testing.assert_allclose(np.exp(found.log_probs).sum(axis=1) + found.tail, 1.0, atol=1e-5)
    known = (rows.tokens < 50) & np.isfinite(rows.log_probs)
    np.testing.assert_array_equal(found.log_probs[known], rows.log_probs[known])
    assert not np.isfinite(found.log_probs[~known]).any()
    assert within_width(rows, 100) is rows
