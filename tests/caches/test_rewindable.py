"""After tokens are taken back a cache goes on as one that never read them, whatever it is made of."""

from __future__ import annotations

import random

import mlx.core as mx
import pytest
import zoo
from mlx import nn

from draftloop.caches import RewindableCache, new_cache, rewinding_of
from draftloop.caches.rewindable import Way

EXACT = 2e-3  # of logits whose standard deviation is about 1


def logits_after(model: nn.Module, tokens: list[int]) -> mx.array:
    """After the last token, read one by one."""
    cache = new_cache(model, 1)
    cache.prefill(mx.array(tokens[:4], mx.uint32), 4)
    for token in tokens[4:]:
        found = cache.read(mx.array([token], mx.uint32))
        cache.settle()
    return found[-1]


def assert_same(found: mx.array, expected: mx.array) -> None:
    assert mx.abs(found - expected).max().item() < EXACT * mx.std(expected).item()


@pytest.mark.parametrize("name", [*zoo.FEW, *zoo.STATES[2:]])
def test_rounds_of_passes_and_rewinds_end_where_the_kept_tokens_alone_do(name: str) -> None:
    model, rng = zoo.model(name), random.Random(1)
    cache = new_cache(model, 8)
    kept = [rng.randrange(101) for _ in range(4)]
    cache.prefill(mx.array(kept, mx.uint32), 3)
    for _ in range(12):
        cache.settle()
        first = [rng.randrange(101) for _ in range(rng.randint(1, 5))]
        more = [[rng.randrange(101)] for _ in range(rng.randint(0, 3))]
        for tokens in (first, *more):
            cache.read(mx.array(tokens, mx.uint32))
        read = [*first, *(token for one in more for token in one)]
        back = rng.randint(0, len(read) - 1)
        cache.rewind(back)
        kept += read[: len(read) - back]
    token = rng.randrange(101)
    assert_same(cache.read(mx.array([token], mx.uint32))[-1], logits_after(model, [*kept, token]))


@pytest.mark.parametrize("name", zoo.FEW)
def test_what_is_left_of_a_pass_can_be_taken_back_too(name: str) -> None:
    model = zoo.model(name)
    cache = new_cache(model, 8)
    cache.prefill(mx.array([1, 2, 3, 4], mx.uint32), 4)
    cache.read(mx.array([5, 6, 7, 8, 9], mx.uint32))
    for back in (2, 1, 2):
        cache.rewind(back)
    assert_same(cache.read(mx.array([10], mx.uint32))[-1], logits_after(model, [1, 2, 3, 4, 10]))


@pytest.mark.parametrize("name", zoo.FEW)
def test_a_copy_goes_on_by_itself(name: str) -> None:
    model = zoo.model(name)
    cache = new_cache(model, 8)
    cache.prefill(mx.array(list(range(30)), mx.uint32), 16)
    copy = cache.copy()
    for token in (40, 41, 42):
        cache.read(mx.array([token], mx.uint32))
    cache.evaluate()
    found = copy.read(mx.array([50, 51], mx.uint32))
    assert_same(found[-1], logits_after(model, [*range(30), 50, 51]))
    cache.rewind(1)
    assert_same(cache.read(mx.array([43], mx.uint32))[-1], logits_after(model, [*range(30), 40, 41, 43]))


@pytest.mark.parametrize("name", ["qwen3_5", "deepseek_v41"])
def test_settled_tokens_of_a_state_are_not_taken_back(name: str) -> None:
    cache = new_cache(zoo.model(name), 8)
    cache.read(mx.array([1, 2, 3], mx.uint32))
    cache.settle()
    cache.read(mx.array([4], mx.uint32))
    with pytest.raises(ValueError, match="1 tokens to take back that are settled"):
        cache.rewind(2)


@pytest.mark.parametrize(
    ("name", "way"), [("llama", "trim"), ("gpt_oss", "trim"), ("qwen3_5", "local"), ("deepseek_v41", "eager")]
)
def test_the_cheapest_exact_way_is_taken(name: str, way: Way) -> None:
    assert rewinding_of(zoo.model(name)).way == way


def test_a_model_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.model("qwen3_5")
    classes = [type(module) for module in model.modules()]
    cache: RewindableCache = new_cache(model, 4)
    cache.read(mx.array([1, 2, 3], mx.uint32))
    cache.rewind(1)
    assert [type(module) for module in model.modules()] == classes
    assert not any("draftloop" in name for module in model.modules() for name in vars(module))
