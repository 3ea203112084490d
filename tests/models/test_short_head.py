"""A short head gives the logits of the whole one on its tokens and minus infinity elsewhere, whatever the head is."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice

import mlx.core as mx
import numpy as np
import pytest
import zoo
from chance import BROKEN, FITS, p_value
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from tiny import sampler, tiny_llama, tiny_pair

from draftloop.caches import read_whole
from draftloop.config import Lora
from draftloop.decoding.decoder import Decoding, Settings
from draftloop.errors import PairError
from draftloop.models import adapter as lora
from draftloop.models.draft_vocabulary import DraftVocabulary
from draftloop.models.short_head import place_of_head, shorten, shortened

TOKENS = (0, 3, 7, 8, 20, 63)
INPUTS = mx.array([[3, 1, 4, 1, 5, 9, 2, 6]])


def vocabulary(model: nn.Module, tokens: tuple[int, ...] = TOKENS) -> DraftVocabulary:
    head = place_of_head(model)
    assert head is not None
    return DraftVocabulary(tokens, head, "a test")


def with_noise(model: nn.Module, keys: tuple[str, ...] | None = None) -> nn.Module:
    lora.attach_fresh(model, replace(lora.shape_for(model, Lora(rank=4)), **({"keys": keys} if keys else {})), 0)
    noise = {
        name: 0.1 * mx.random.normal(leaf.shape, key=mx.random.key(i))
        for i, (name, leaf) in enumerate(lora.adapter_parameters(model).items())
    }
    lora.load_parameters(model, noise)
    return model


def model_of(kind: str) -> nn.Module:
    model = tiny_llama(tied="tied" in kind, width=64)
    if "16 bits" in kind:
        model.set_dtype(mx.bfloat16)
    if "quantized" in kind:
        nn.quantize(model, group_size=32, bits=4)
        model.freeze()
    mx.eval(model.parameters())
    return with_noise(model) if "adapted" in kind else model


KINDS = [f"{head} {bits}{adapted}" for head in ("tied", "own") for bits in ("32 bits", "16 bits", "quantized")
         for adapted in ("", " adapted")]  # fmt: skip


@pytest.mark.parametrize("copies", [None, True, False], ids=["as it is", "merged", "beside"])
@pytest.mark.parametrize("kind", KINDS)
def test_its_logits_are_those_of_the_whole_head(kind: str, copies: bool | None) -> None:
    model = model_of(kind)
    chosen_tokens = vocabulary(model)
    if copies is not None:
        lora.merge(model, copies=copies)
    whole = read_whole(model, INPUTS).astype(mx.float32)
    with shortened(model, chosen_tokens):
        short = read_whole(model, INPUTS).astype(mx.float32)
    chosen = mx.array(TOKENS)
    assert short.shape == whole.shape
    np.testing.assert_allclose(short[..., chosen], whole[..., chosen], rtol=0, atol=0.1 if "16" in kind else 2e-4)
    others = np.setdiff1d(np.arange(64), TOKENS)
    assert mx.all(short[..., mx.array(others)] == -mx.inf).item()
    assert mx.array_equal(read_whole(model, INPUTS).astype(mx.float32), whole).item()


def test_within_it_nothing_of_the_model_is_copied_but_the_rows() -> None:
    model = model_of("tied 32 bits")
    own = {id(leaf) for _, leaf in tree_flatten(model.parameters())}
    with shortened(model, vocabulary(model)):
        new = [leaf for _, leaf in tree_flatten(model.parameters()) if id(leaf) not in own]
    assert sum(leaf.nbytes for leaf in new) == len(TOKENS) * 64 * 4


def test_a_short_head_is_not_shortened_again() -> None:
    model = model_of("own 32 bits")
    chosen = vocabulary(model)
    assert len(shorten(model, chosen)) == 1
    assert shorten(model, chosen) == []
    with shortened(model, chosen):
        assert mx.isinf(read_whole(model, INPUTS)).any().item()
    assert mx.isinf(read_whole(model, INPUTS)).any().item()


@pytest.mark.parametrize("chosen", [None, DraftVocabulary((), "lm_head", "all pay")])
def test_all_tokens_change_nothing(chosen: DraftVocabulary | None) -> None:
    model = model_of("own 32 bits")
    before = dict(model.named_modules())
    assert shorten(model, chosen) == []
    assert dict(model.named_modules()) == before


@pytest.mark.parametrize(("family", "head"), [("llama", "lm_head"), ("gemma2", None)])
def test_a_head_that_is_not_the_last_thing_stays_whole(family: str, head: str | None) -> None:
    assert place_of_head(zoo.model(family)) == head


class _Scaled(nn.Linear):  # type: ignore[misc]
    """As some models rotate what goes into their quantized head."""

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(2.0 * x)


def test_a_head_that_does_more_than_multiply_stays_whole() -> None:
    model = model_of("own 32 bits")
    assert place_of_head(model) == "lm_head"
    model.lm_head.__class__ = _Scaled
    assert place_of_head(model) is None


def test_greedy_outputs_are_the_target_s_whatever_the_draft_may_propose() -> None:
    pair = tiny_pair(likeness=0.9)
    plain = [int(token) for token, _ in islice(generate_step(mx.array([5, 6, 7]), pair.target), 40)]
    for tokens in (TOKENS, tuple(range(32)), tuple(range(64))):
        own = replace(pair, vocabulary=vocabulary(pair.draft, tokens))
        with own.merged():
            rounds = list(Decoding(own, [5, 6, 7], Settings(sampler(0.0), "greedy", num_draft_tokens=3, max_tokens=40)))
        assert [token for round_ in rounds for token in round_.tokens] == plain
        assert {token for round_ in rounds for token in round_.proposals} <= set(tokens)


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_samples_have_the_target_s_law_and_not_the_short_draft_s(rule: str) -> None:
    pair = tiny_pair(likeness=0.8)
    prompt, runs = [5, 6, 7], 600
    law = np.array(mx.softmax(read_whole(pair.target, mx.array([prompt]))[0, -1]))
    likely = tuple(int(token) for token in np.argsort(-law)[1::2][:16])  # half of what the target says is out of reach
    own = replace(pair, vocabulary=vocabulary(pair.draft, tuple(sorted(likely))))
    counts, proposed = np.zeros(64), np.zeros(64)
    with own.merged():
        for seed in range(runs):
            settings = Settings(sampler(1.0, seed=seed), rule, num_draft_tokens=2, max_tokens=1)
            (round_,) = Decoding(own, prompt, settings)
            counts[round_.tokens[0]] += 1
            proposed[round_.proposals[0]] += 1
    assert set(np.flatnonzero(proposed)) <= set(likely)
    assert p_value(counts, law) > FITS
    shorter = np.where(np.isin(np.arange(64), likely), law, 1e-9)
    assert p_value(counts, shorter) < BROKEN


@pytest.mark.parametrize("head", ["lm_head", "language_model.model.embed_tokens"])
def test_a_head_that_is_not_where_it_was_is_said_with_a_way_out(head: str) -> None:
    """Another release of mlx-lm may name a family's modules otherwise."""
    model = tiny_llama(tied=True, width=64)
    with pytest.raises(PairError, match=rf"draft_vocabulary\.json.*{re.escape(head)}.*delete"):
        shorten(model, DraftVocabulary(TOKENS, head, "a test"))
    assert place_of_head(model) == "model.embed_tokens"
