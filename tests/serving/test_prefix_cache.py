"""The longest beginning that is of use is found, by its owner alone, and what is held stays within its bound."""

from __future__ import annotations

import mlx.core as mx
import pytest
import zoo

from draftloop.caches import RewindableCache, new_cache
from draftloop.serving.prefix_cache import LEAST, PrefixCache, Shelf

MINE, OTHERS = Shelf("1", "target"), Shelf("2", "target")
TOKENS = tuple(i % 90 for i in range(60))


def read(name: str, tokens: tuple[int, ...]) -> RewindableCache:
    cache = new_cache(zoo.model(name), 8)
    cache.prefill(mx.array(tokens, mx.uint32), 512)
    return cache


def following(name: str, cache: RewindableCache, prompt: tuple[int, ...], length: int) -> mx.array:
    return cache.read(mx.array(prompt[length:], mx.uint32))[-1]


@pytest.mark.parametrize("name", ["llama", "qwen3_5", "gpt_oss", "llama4"])
def test_what_is_found_goes_on_as_one_that_read_the_prompt_and_changes_nothing_that_is_kept(name: str) -> None:
    kept, prompt = PrefixCache(1 << 30), (*TOKENS, 5, 6, 7)
    kept.keep(MINE, TOKENS, read(name, TOKENS))
    for _ in range(2):
        found = kept.find(MINE, prompt)
        assert found is not None
        cache, length = found
        assert length == len(TOKENS)
        expected = following(name, new_cache(zoo.model(name), 8), prompt, 0)
        assert mx.allclose(following(name, cache, prompt, length), expected, rtol=1e-4, atol=1e-4)


def test_keys_and_values_are_of_use_up_to_where_a_prompt_differs_and_a_state_as_a_whole_alone() -> None:
    prompt = (*TOKENS[:40], *(1,) * 30)
    for name, expected in (("llama", 40), ("qwen3_5", None)):
        kept = PrefixCache(1 << 30)
        kept.keep(MINE, TOKENS, read(name, TOKENS))
        found = kept.find(MINE, prompt)
        assert (found and found[1]) == expected


def test_the_last_token_of_a_prompt_is_never_among_what_was_read() -> None:
    kept = PrefixCache(1 << 30)
    kept.keep(MINE, TOKENS, read("llama", TOKENS))
    found = kept.find(MINE, TOKENS)
    assert found is not None
    assert found[1] == len(TOKENS) - 1


def test_nobody_finds_what_another_one_has_asked() -> None:
    kept = PrefixCache(1 << 30)
    kept.keep(MINE, TOKENS, read("llama", TOKENS))
    assert kept.find(OTHERS, (*TOKENS, 1)) is None
    assert kept.find(Shelf("1", "draft bare"), (*TOKENS, 1)) is None


def test_the_least_recently_used_goes_first_and_what_is_held_stays_within_the_bound() -> None:
    texts = [tuple((start + i) % 90 for i in range(2 * LEAST)) for start in (0, 30, 60)]
    size = read("llama", texts[0]).nbytes
    kept = PrefixCache(2 * size)
    for text in texts[:2]:
        kept.keep(MINE, text, read("llama", text))
    assert kept.find(MINE, (*texts[0], 1)) is not None
    kept.keep(MINE, texts[2], read("llama", texts[2]))
    assert [kept.find(MINE, (*text, 1)) is not None for text in texts] == [True, False, True]
    assert kept.nbytes == 2 * size
    kept.clear()
    assert (len(kept), kept.nbytes) == (0, 0)


def test_a_longer_one_takes_the_place_of_its_own_beginning_and_nothing_is_kept_that_is_too_large() -> None:
    kept = PrefixCache(1 << 30)
    kept.keep(MINE, TOKENS[:40], read("llama", TOKENS[:40]))
    kept.keep(MINE, TOKENS, read("llama", TOKENS))
    assert len(kept) == 1
    none = PrefixCache(0)
    none.keep(MINE, TOKENS, read("llama", TOKENS))
    assert len(none) == 0
