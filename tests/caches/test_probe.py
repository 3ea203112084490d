"""The probe takes a way only where it is exact: every way that is broken on purpose is noticed."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import pytest
import zoo
from mlx import nn

from draftloop.caches import NoWayBack, find_way
from draftloop.caches.probe import Rewinding, how_wrong
from draftloop.caches.rewindable import RewindableCache

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
