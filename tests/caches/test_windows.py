"""A window that takes tokens back shows what mlx-lm's shows, whatever was read and taken back before."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import RotatingKVCache

from draftloop.caches.windows import ChunkCache, WindowCache

SLACK = 6
MOVES = st.lists(st.tuples(st.integers(1, 7), st.integers(0, SLACK)), min_size=1, max_size=40)


def entries(tokens: list[int]) -> mx.array:
    """Keys that say which token they are of, (1, 1, S, 1)."""
    return mx.array(tokens, mx.float32).reshape(1, 1, -1, 1)


def shown(cache: WindowCache) -> list[int]:
    keys, values = cache.keys_and_values()
    assert mx.array_equal(keys, values)
    return [int(value) for value in np.array(keys).ravel()]


@given(MOVES, st.integers(1, 20), st.integers(1, 5))
def test_a_pass_sees_the_tokens_before_it_and_its_own_whatever_was_taken_back(moves, size: int, step: int) -> None:
    cache, read = WindowCache(size, SLACK), list[int]()
    cache.step = step
    for number, (count, back) in enumerate(moves):
        tokens = [100 * number + i for i in range(count)]
        cache.update_and_fetch(entries(tokens), entries(tokens))
        assert shown(cache) == [*read[max(0, len(read) - size + 1) :], *tokens]
        read += tokens
        back = min(back, count)
        assert cache.trim(back) == back
        read = read[: len(read) - back]
        assert cache.offset == len(read)


@pytest.mark.parametrize(("size", "narrower"), [(16, 16), (16, 8), (16, 4), (16, None), (64, 8)])
def test_a_layer_that_asks_for_less_than_the_window_holds_sees_what_mlx_lm_shows(size: int, narrower: int | None):
    ours, theirs = WindowCache(size, SLACK), RotatingKVCache(size)
    for step in range(90):
        count = (1, 1, 3, 1)[step % 4]
        new = mx.random.normal((1, 1, count, 4), key=mx.random.key(step))
        masks = [cache.make_mask(count, window_size=narrower) for cache in (ours, theirs)]
        held = [cache.update_and_fetch(new, new)[0] for cache in (ours, theirs)]
        found, expected = (
            mx.fast.scaled_dot_product_attention(new, keys, keys, scale=1.0, mask=mask)
            for keys, mask in zip(held, masks, strict=True)
        )
        assert mx.allclose(found, expected, atol=1e-5), (step, ours.offset)


@pytest.mark.parametrize("size", [1, 4, 9])
def test_it_shows_what_mlx_lms_window_shows_as_long_as_nothing_is_taken_back(size: int) -> None:
    ours, theirs, at = WindowCache(size, SLACK), RotatingKVCache(size), 0
    for count in (3, 2, 5, 1, 1, 1, 4, 1, 2, 6, 1):
        tokens = list(range(at, at + count))
        at += count
        masks = [np.array(cache.make_mask(count, return_array=True)) if count > 1 else None for cache in (ours, theirs)]
        ours.update_and_fetch(entries(tokens), entries(tokens))
        found, _ = theirs.update_and_fetch(entries(tokens), entries(tokens))
        expected = sorted(int(value) for value in np.array(found).ravel())  # theirs rotates
        assert shown(ours)[-len(expected) :] == expected
        if count > 1:
            np.testing.assert_array_equal(
                *(mask[:, -min(m.shape[1] for m in masks) :] for mask in masks for m in [mask])
            )


def test_more_than_the_slack_is_refused_where_it_is_gone() -> None:
    cache = WindowCache(4, 2)
    cache.step = 1
    for token in range(30):
        cache.update_and_fetch(entries([token]), entries([token]))
    with pytest.raises(ValueError, match="20 tokens to take back; a window of 4 was made for 2"):
        cache.trim(20)


def test_a_chunk_keeps_what_lies_before_its_border_for_as_long_as_it_may_be_needed() -> None:
    cache = ChunkCache(4, SLACK)
    cache.step = 2
    for token in range(40):
        cache.maybe_trim_front()
        cache.update_and_fetch(entries([token]), entries([token]))
        keys, _ = cache.keys_and_values()
        assert [int(v) for v in np.array(keys).ravel()] == list(range(cache.start_position, token + 1))
        assert token + 1 - cache.start_position >= min(token + 1, 4 + SLACK)
    assert cache.start_position > 0
    assert cache.trim(SLACK) == SLACK


@given(MOVES, st.integers(2, 12))
def test_a_window_that_went_to_mlx_lms_and_back_shows_what_it_would_have_shown(moves, size: int) -> None:
    ours, other, at = WindowCache(size, SLACK), WindowCache(size, SLACK), 0
    for count, back in moves:
        tokens = list(range(at, at + count))
        at += count
        for cache in (ours, other):
            cache.update_and_fetch(entries(tokens), entries(tokens))
            cache.trim(min(back, count))
        at -= min(back, count)
        other = WindowCache.of(other.stock(), SLACK)
    for cache in (ours, other):
        cache.update_and_fetch(entries([1000]), entries([1000]))
    assert shown(other) == shown(ours)
    assert other.offset == ours.offset


def test_a_chunk_gives_back_what_leaves_a_whole_chunk_however_often() -> None:
    cache = ChunkCache(4, 2)
    cache.step = 1
    for token in range(40):
        cache.maybe_trim_front()
        cache.update_and_fetch(entries([token]), entries([token]))
    held = cache.offset - cache.start_position
    assert cache.holds(held - 4)
    assert not cache.holds(held - 3)
    cache.trim(held - 4)
    assert not cache.holds(1)
