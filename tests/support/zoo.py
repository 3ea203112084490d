"""Pairs of tiny models of mlx-lm's own classes: a target, and the same with noise as its draft."""

from __future__ import annotations

from functools import cache

import mlx.core as mx
from mlx import nn
from tiny import word_tokenizer

from draftloop.data.records import PairId
from draftloop.models.pair import Pair
from scripts import model_zoo

FEW = ("llama", "qwen3_5", "falcon_h1", "gpt_oss", "gemma3n", "baichuan_m1", "llama4", "deepseek_v41")
"""One for each kind of cache: keys and values, states, both in one layer, windows, shared windows, a state beside a
window, chunks, and a state that only the whole model can read again."""
STATES = ("qwen3_5", "falcon_h1", "lfm2", "rwkv7", "mamba2", "jamba")


@cache
def model(name: str, seed: int = 0) -> nn.Module:
    """Shared by all tests that change nothing in it."""
    return model_zoo.build(name, seed)


def in_four_bits(name: str, seed: int = 0) -> nn.Module:
    """The same with activations in bfloat16, and the weights of four bits wherever their rows allow it."""
    found = model_zoo.build(name, seed)
    found.set_dtype(mx.bfloat16)
    nn.quantize(found, group_size=32, bits=4, class_predicate=_has_rows_of_32)
    return found


def _has_rows_of_32(_path: str, module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return hasattr(module, "to_quantized") and weight is not None and weight.shape[-1] % 32 == 0


def pair(name: str, seed: int = 0, noise: float = 0.12) -> Pair:
    """A target and a draft that agrees with it now and then; nothing ends an output."""
    return Pair(
        target=model(name, seed),
        draft=model_zoo.noisy(name, seed, noise),
        tokenizer=word_tokenizer(model_zoo.VOCABULARY),
        identity=PairId("target", "draft", "tokenizer"),
        width=model_zoo.VOCABULARY,
        stop_tokens=frozenset(),
        context=None,
    )
