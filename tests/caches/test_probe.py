"""The probe takes a way only where it is exact: every way that is broken on purpose is noticed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import ClassVar

import mlx.core as mx
import pytest
import zoo
from mlx import nn
from mlx_lm.models.cache import RotatingKVCache

from draftloop.caches import NoWayBack, find_way, recorder, rewinding_of, spread_of_logits
from draftloop.caches.probe import Rewinding, how_wrong
from draftloop.caches.recorder import _noting_kind
from draftloop.caches.rewindable import RewindableCache
from scripts import model_zoo

WITH_A_STATE = (
    "qwen3_5",
    "qwen3_next",
    "falcon_h1",
    "lfm2",
    "rwkv7",
    "mamba2",
    "jamba",
    "nemotron_h",
    "kimi_linear",
    "deepseek_v41",
)


@pytest.mark.parametrize("name", WITH_A_STATE)
def test_keys_that_are_cut_while_states_are_left_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def keys_alone(cache: RewindableCache, count: int) -> None:
        cache._trim(count)

    monkeypatch.setattr(RewindableCache, "rewind", keys_alone)
    assert "standard deviations" in str(how_wrong(Rewinding(zoo.model(name), "eager")))
    with pytest.raises(NoWayBack, match="eager: logits are off by"):
        find_way(zoo.model(name))


@pytest.mark.parametrize("name", zoo.FEW)
def test_nothing_taken_back_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewindableCache, "rewind", lambda *_: None)
    with pytest.raises(NoWayBack, match="logits are off by"):
        find_way(zoo.model(name))


def test_one_token_too_many_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rewind = RewindableCache.rewind
    monkeypatch.setattr(RewindableCache, "rewind", lambda self, count: rewind(self, count + (count > 0)))
    for name in ("llama", "gpt_oss", "qwen3_5"):
        with pytest.raises(NoWayBack, match="logits are off by"):
            find_way(zoo.model(name))


def test_a_model_whose_whole_passes_see_further_than_its_single_steps_is_refused() -> None:
    with pytest.raises(NoWayBack, match=r"a pass over several tokens sees 17 of them .* whose single steps see 16"):
        find_way(zoo.model("plamo3"))


def test_a_model_that_takes_no_cache_is_refused_with_its_reason() -> None:
    class Bare(nn.Module):
        """A model of somebody's own."""

        layers: ClassVar[list[nn.Module]] = []

        def __call__(self, tokens: mx.array) -> mx.array:
            return mx.zeros((*tokens.shape, 8))

    with pytest.raises(NoWayBack, match="unexpected keyword argument 'cache'"):
        find_way(Bare())


SLOW = [pytest.param("deepseek_v3", seed, marks=pytest.mark.slow) for seed in (0, 4)]  # its experts are, on a CPU
IN_16_BITS = [("llama", 0), ("granitemoehybrid", 5), ("kimi_linear", 0), *SLOW]


@pytest.mark.parametrize(("name", "seed"), IN_16_BITS)
def test_rounding_that_chooses_other_experts_is_not_taken_for_a_wrong_way(name: str, seed: int) -> None:
    """Of four bits in blocks of 32, with activations in bfloat16: as most people run them."""
    assert find_way(zoo.in_four_bits(name, seed)).way in ("trim", "local")


@pytest.mark.parametrize("name", ["llama", "qwen3_5", "granitemoehybrid", "kimi_linear", "gpt_oss"])
@pytest.mark.some(2)
def test_what_is_broken_is_noticed_in_16_bits_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewindableCache, "rewind", lambda *_: None)
    for seed in range(2):
        with pytest.raises(NoWayBack, match="logits are off by"):
            find_way(zoo.in_four_bits(name, seed))


@pytest.mark.parametrize("name", ["qwen3_5", "granitemoehybrid", "kimi_linear", "falcon_h1"])
def test_states_that_are_left_are_noticed_in_16_bits_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewindableCache, "rewind", lambda cache, count: cache._trim(count))
    with pytest.raises(NoWayBack, match="logits are off by"):
        find_way(zoo.in_four_bits(name, 0))


class Ring(RotatingKVCache):  # type: ignore[misc]
    """Somebody else's."""


@pytest.mark.parametrize("make", [lambda: RotatingKVCache(64, keep=4), lambda: Ring(64)])
def test_a_ring_that_no_window_replaces_is_refused_before_it_is_full(make: Callable[[], RotatingKVCache]) -> None:
    model = model_zoo.build("llama")
    own = type(model)
    model.__class__ = type("WithRings", (own,), {"make_cache": lambda self: [make() for _ in self.layers]})
    with pytest.raises(NoWayBack, match="overwrites tokens that would have to be brought back"):
        find_way(model)


def test_a_cache_that_cannot_trim_any_more_says_so_and_gives_nothing_wrong() -> None:
    """Should one get by: it could be trimmed while the way was looked for."""
    cache = RewindableCache(zoo.model("llama"), 4)
    cache.read(mx.array([1, 2, 3], mx.uint32))
    cache._trimmed[0].is_trimmable = lambda: False
    with pytest.raises(ValueError, match="2 tokens to take back, the cache has 0"):
        cache.rewind(2)


@pytest.mark.parametrize("name", ["llama", "qwen3_5", "gpt_oss"])
def test_what_is_known_of_a_model_keeps_it_no_longer_than_it_lives(name: str) -> None:
    model = model_zoo.build(name)
    gone = weakref.ref(model)
    rewinding_of(model).cache(4).read(mx.array([1, 2], mx.uint32))
    del model
    gc.collect()
    assert gone() is None


def test_an_interrupt_while_layers_are_watched_leaves_them_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_zoo.build("qwen3_5")
    cache = rewinding_of(model).cache(4)
    kinds, made = [type(module) for module in model.modules()], 0

    def interrupted(kind: type[nn.Module]) -> type[nn.Module]:
        nonlocal made
        made += 1
        if made == 2:
            raise KeyboardInterrupt
        return _noting_kind(kind)

    with monkeypatch.context() as patched:
        patched.setattr(recorder, "_noting_kind", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.read(mx.array([1, 2, 3], mx.uint32))
    assert [type(module) for module in model.modules()] == kinds
    again = rewinding_of(model).cache(4)
    for _ in range(2):
        again.read(mx.array([1, 2, 3], mx.uint32))
        again.rewind(2)


def test_what_may_not_be_proposed_counts_for_nothing_in_what_is_off() -> None:
    """A wrong way must not pass, nor a right one fail, because most tokens of a short head have no logit."""
    logits = mx.array([[7.0, 9.0], [9.0, 7.0]])
    assert spread_of_logits(logits) == 1.0
    nothing = mx.full((2, 30), -mx.inf)
    assert spread_of_logits(mx.concatenate([nothing, logits], axis=1)) == 1.0
