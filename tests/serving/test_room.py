"""What requests may take: reckoned by the caches that they really fill, and shared out where a length is open."""

from __future__ import annotations

import mlx.core as mx
import pytest
import zoo
from hypothesis import given
from hypothesis import strategies as st

from draftloop.caches import new_cache
from draftloop.decoding.prompt_caches import RowBytes, row_bytes
from draftloop.serving.api_error import ApiError
from draftloop.serving.room import LEAST_OPEN, Room

ROWS = (RowBytes(((100, 10, float("inf")), (50, 4, 64))), RowBytes(((7, 3, float("inf")),)))


@pytest.mark.parametrize("name", ["llama", "qwen3_5", "falcon_h1", "mamba2"])
def test_what_a_sequence_takes_is_what_its_cache_holds(name: str) -> None:
    model, length = zoo.model(name), 512
    cache = new_cache(model, 0)
    cache.read(mx.zeros(length, mx.int32))
    cache.settle()
    assert row_bytes(model).of(length) == pytest.approx(cache.nbytes, rel=0.25)


@given(st.integers(1, 5000), st.integers(1, 40_000), st.integers(1, 10_000_000), st.integers(1, 16))
def test_an_open_answer_is_as_long_as_its_share_allows(prompt: int, most: int, room: int, at_once: int) -> None:
    found = Room(ROWS, room, at_once)
    length = found.open_answer(prompt, most)
    assert 1 <= length <= most
    if length > LEAST_OPEN:
        assert found.bytes_of(prompt, length) <= room / at_once
    elif length > 1:
        assert found.bytes_of(prompt, length) <= room
    if length < most:
        assert found.bytes_of(prompt, length + 1) > (room / at_once if length >= LEAST_OPEN else room)


def test_what_never_fits_is_refused_with_both_figures() -> None:
    room = Room(ROWS, 2_000_000, 4)
    room.check(1000, 1000)
    with pytest.raises(ApiError, match=r"a prompt of 100000 tokens .* need 3 MB .*; expected at most 2 MB") as error:
        room.check(100_000, 100_000)
    assert (error.value.status, error.value.code) == (400, "context_length_exceeded")
    assert room.left(500_000) == 1_500_000
