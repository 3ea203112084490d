"""Every way to decode makes the same greedy text, is counted alike, and takes its turn at every prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import mlx.core as mx
import pytest
from tiny import sampler, tiny_pair

from draftloop.decoding.decoder import Settings
from draftloop.evaluation.timed_decoding import OURS, STOCK, Decoder, TimedPass, Way, take_turns
from draftloop.models.pair import Pair

PROMPTS = [[3, 1, 4], [1, 5, 9, 2]]
GREEDY = Settings(sampler(0.0), "greedy", 4, 12)
WAYS = [Way(by, None if by == STOCK or k == 0 else "greedy", k) for by in (STOCK, OURS) for k in (0, 1, 3)]


@pytest.fixture
def pair(embedded_pair: Pair) -> Pair:
    """Its tokenizer is wrapped by mlx-lm, as `stream_generate` wants it."""
    return replace(embedded_pair, stop_tokens=frozenset())


@pytest.mark.parametrize("by", [STOCK, OURS])
def test_a_way_counts_every_token_that_it_emits_and_its_rounds(pair: Pair, by: Decoder) -> None:
    counted = {}
    for k in (0, 2):
        one = TimedPass(Way(by, None if k == 0 or by == STOCK else "greedy", k), seed=0)
        for prompt in PROMPTS:
            one.decode(pair, prompt, GREEDY)
        assert one.seconds > 0
        counted[k] = one.tokens, one.rounds
    assert counted[0] == (24, 24)
    assert counted[2][0] == 24
    assert 8 <= counted[2][1] <= 24


def test_greedy_texts_of_ours_are_the_same_at_every_draft_length(pair: Pair) -> None:
    found = take_turns(pair, PROMPTS, GREEDY, [way for way in WAYS if way.by == OURS], 1)
    texts = [[one.output for one in passes[0].generations] for passes in found.values()]
    assert texts[0] == texts[1] == texts[2]
    assert [sum(one.tokens for one in passes[0].outputs) for passes in found.values()] == [24] * 3


def test_both_decoders_take_as_many_rounds_of_greedy_text(pair: Pair) -> None:
    """So what one gains over the other at temperature 0 is overhead and nothing else."""
    found = take_turns(pair, PROMPTS, GREEDY, WAYS, 1)
    for k in (0, 1, 3):
        ours, stock = (
            next(p[0] for w, p in found.items() if (w.by, w.num_draft_tokens) == (by, k)) for by in (OURS, STOCK)
        )
        assert (ours.tokens, ours.rounds) == (stock.tokens, stock.rounds)


def test_ways_take_turns_at_every_prompt_in_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[Way, tuple[int, ...]]] = []

    def noted(self: TimedPass, _pair: Pair, prompt: Iterable[int], _settings: Settings) -> None:
        order.append((self.way, tuple(prompt)))

    monkeypatch.setattr(TimedPass, "decode", noted)
    told: list[int] = []
    found = take_turns(tiny_pair(), PROMPTS, GREEDY, WAYS, 2, on_text=lambda: told.append(1))
    assert order == [(way, tuple(prompt)) for prompt in PROMPTS for way in WAYS] * 2
    assert [len(passes) for passes in found.values()] == [2] * len(WAYS)
    assert len(told) == len(order)


def test_without_proposals_the_draft_is_not_asked(pair: Pair) -> None:
    class Absent:
        layers = pair.draft.layers

        def __call__(self, *_: object, **__: object) -> mx.array:
            raise AssertionError("the draft was asked")

    for by in (STOCK, OURS):
        TimedPass(Way(by, None, 0), seed=0).decode(replace(pair, draft=Absent()), PROMPTS[0], GREEDY)
