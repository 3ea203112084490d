"""What is kept of a prompt is what reading it alone keeps, however it was read, and mlx-lm goes on from there."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache
from tiny import tiny_llama

from draftloop.decoding.prompt_caches import _alike, are_plain, read

MODEL = tiny_llama()
PROMPTS = [[1 + (i * 7 + j) % 50 for j in range(length)] for i, length in enumerate([9, 1, 40, 2, 9, 33, 300, 5])]


@pytest.mark.parametrize("most_tokens", [8, 64, 10_000])
def test_each_cache_is_that_of_the_prompt_read_alone_but_for_its_last_id(most_tokens: int) -> None:
    for prompt, layers in zip(PROMPTS, read(MODEL, PROMPTS, 7, most_tokens), strict=True):
        assert {layer.offset for layer in layers} == {len(prompt) - 1}
        alone = make_prompt_cache(MODEL)
        expected = MODEL(mx.array([prompt]), cache=alone)[:, -1]
        assert mx.allclose(MODEL(mx.array([prompt[-1:]]), cache=layers)[:, -1], expected, atol=1e-4)
        for layer, other in zip(layers, alone, strict=True):
            assert mx.allclose(layer.keys[..., : len(prompt), :], other.keys[..., : len(prompt), :], atol=1e-4)


def test_side_by_side_they_have_room_for_what_is_written_and_no_more() -> None:
    layers = [list(one) for one in zip(*read(MODEL, PROMPTS, 7, 1_000), strict=True)]
    merged = [type(layer[0]).merge(layer) for layer in layers]
    ids = mx.array([prompt[-1:] for prompt in PROMPTS])
    expected = [MODEL(mx.array([prompt]))[0, -1] for prompt in PROMPTS]
    assert mx.allclose(MODEL(ids, cache=merged)[:, -1], mx.stack(expected), atol=1e-4)
    assert {layer.keys.shape[2] for layer in merged} == {max(map(len, PROMPTS)) - 1 + 7}


def test_little_is_padded_where_it_would_cost_time() -> None:
    prompts = [[1] * (1 + length) for length in (400, 3, 80, 90, 100, 10, 395, 250, 80)]
    groups = list(_alike(prompts))
    assert sorted(i for group in groups for i in group) == list(range(len(prompts)))
    for group in groups:
        read_of_each = [len(prompts[i]) - 1 for i in group]
        padded, tokens = len(group) * max(read_of_each), sum(read_of_each)
        assert padded - tokens <= padded / 8 or padded <= 256


def test_reading_ends_where_it_is_enough() -> None:
    asked: list[int] = []
    assert read(MODEL, PROMPTS, 7, 1_000, lambda: asked.append(1) or len(asked) == 2) is None
    assert len(asked) == 2


def test_models_that_keep_something_else_of_a_prompt_are_left_to_mlx_lm() -> None:
    class Rotating:
        layers = MODEL.layers

        def make_cache(self) -> list[RotatingKVCache]:
            return [RotatingKVCache(16) for _ in self.layers]

    assert are_plain(MODEL)
    assert not are_plain(Rotating())  # type: ignore[arg-type]
