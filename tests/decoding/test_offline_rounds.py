"""What is drawn in hindsight has the law of what the decoder does live; greedy it is the very same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from chance import BROKEN, FITS, same_law
from tiny import sampler, tiny_pair

from draftloop.config import SAMPLING
from draftloop.decoding.batched_generation import OutputRequest, generate_batched
from draftloop.decoding.decoder import Decoding, Settings
from draftloop.decoding.generation import Generation, generation_seed
from draftloop.decoding.offline_rounds import simulate_rounds
from draftloop.decoding.teacher_forced import TargetGeneration
from draftloop.models.pair import Pair

PROMPT = (0, 1, 2)
LENGTH = 6


def settings(rule: str, temperature: float, count: int, seed: int = 0, **more: object) -> Settings:
    return Settings(sampler(temperature, seed=seed), rule, count, LENGTH, **more)  # type: ignore[arg-type]


def live(pair: Pair, ids: tuple[int, ...], how: Settings) -> Generation:
    decoding = Decoding(pair, ids, how)
    rounds = list(decoding)
    decoding.complete_bonus_draws()
    assert decoding.finish is not None
    return Generation.of_rounds(rounds, decoding.bonus_draws, decoding.finish)


def afterwards(pair: Pair, made: list[Generation], how: Settings, prompts: list[tuple[int, ...]]) -> list[Generation]:
    """The same texts looked back on, each with a seed of its own."""
    seeds = [generation_seed(99, (i,)) for i in range(len(made))]
    texts = [
        TargetGeneration(ids, found.output, replace(how.sampler, seed=seed))
        for ids, found, seed in zip(prompts, made, seeds, strict=True)
    ]
    found = dict(simulate_rounds(pair, texts, how))
    return [found[i] for i in range(len(texts))]


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("likeness", [0.5, 0.9, 1.0])
def test_a_greedy_generation_is_the_live_one(count: int, likeness: float) -> None:
    pair = replace(tiny_pair(likeness=likeness), stop_tokens=frozenset({9, 30}))
    how = Settings(sampler(0.0), "greedy", count, 21, teacher_top_k=4)
    prompts = [(start, 5, 6) for start in range(6)]
    made = [live(pair, ids, how) for ids in prompts]
    for ours, theirs in zip(afterwards(pair, made, how, prompts), made, strict=True):
        assert replace(ours, rows=None) == replace(theirs, rows=None, simulated=True)
        assert ours.rows is not None
        assert theirs.rows is not None
        np.testing.assert_array_equal(ours.rows.tokens, theirs.rows.tokens)


LIVE, DRAWN = 300, 2_000
CASES = [("rejection", 1), ("rejection", 4), ("rejection", 8), ("block", 4), ("match", 4)]
SMALL = replace(tiny_pair(4, likeness=0.6), stop_tokens=frozenset({3}))  # so that whole sequences can be counted


@cache
def live_ones(rule: str, count: int) -> list[Generation]:
    return [live(SMALL, PROMPT, settings(rule, 1.0, count, seed=generation_seed(1, (i,)))) for i in range(LIVE)]


@cache
def drawn_ones(rule: str, count: int) -> list[Generation]:
    """From texts that the target wrote without a draft."""
    wanted = [OutputRequest(PROMPT, sampler(1.0, seed=generation_seed(2, (i,))), LENGTH) for i in range(DRAWN)]
    found = generate_batched(SMALL.target, wanted, width=SMALL.width, stop_tokens=SMALL.stop_tokens, p_bytes=math.inf)
    written = sorted(found, key=lambda text: text.place)
    texts = [TargetGeneration(PROMPT, text.tokens, wanted[text.place].sampler) for text in written]
    return [made for _, made in simulate_rounds(SMALL, texts, settings(rule, 1.0, count), [text.p for text in written])]


@pytest.mark.parametrize(("rule", "count"), CASES)
@pytest.mark.some(1)
def test_rounds_and_proposals_have_the_law_of_live_ones(rule: str, count: int) -> None:
    views: list[Callable[[Generation], object]] = [
        lambda found: found.rounds,  # accepted counts of every round, the cut one included
        lambda found: (found.output[:2], found.draft_output[:2]),
        lambda found: tuple(
            (one.position, one.draft_token, found.output[one.position]) for one in found.rejections[:1]
        ),
        lambda found: found.draft_output[-1] if found.rounds[0][1] == found.rounds[0][0] else None,
    ]
    for view in views:
        seen = [Counter(map(view, made)) for made in (live_ones(rule, count), drawn_ones(rule, count))]
        assert same_law(*seen) > FITS


@pytest.mark.slow
def test_the_same_check_tells_another_rule_and_another_length_apart() -> None:
    theirs = Counter(found.rounds for found in drawn_ones("rejection", 4))
    for case in (("match", 4), ("rejection", 1)):
        assert same_law(Counter(found.rounds for found in live_ones(*case)), theirs) < BROKEN
    proposals = Counter(
        (found.rejections[0].draft_token, found.rounds[0]) for found in drawn_ones("block", 4) if found.rejections
    )
    others = Counter(
        (found.rejections[0].draft_token, found.rounds[0]) for found in drawn_ones("rejection", 4) if found.rejections
    )
    assert same_law(proposals, others) < BROKEN


@pytest.mark.parametrize("rule", SAMPLING)
def test_what_is_told_of_every_position_is_what_the_decoder_tells(rule: str) -> None:
    pair, how = tiny_pair(likeness=0.9), settings(rule, 0.8, 3, teacher_top_k=5)
    prompts = [(start, 5, 6) for start in range(8)]
    made = [live(pair, ids, how) for ids in prompts]
    for ours, theirs in zip(afterwards(pair, made, how, prompts), made, strict=True):
        assert (ours.output, ours.finish) == (theirs.output, theirs.finish)
        np.testing.assert_allclose(ours.log_p, theirs.log_p, atol=1e-4)
        np.testing.assert_allclose(ours.log_q, theirs.log_q, atol=1e-4)
        assert ours.rows is not None
        assert theirs.rows is not None
        np.testing.assert_allclose(ours.rows.log_probs, theirs.rows.log_probs, atol=1e-3)
        for one in ours.rejections:
            assert one.draft_token == ours.draft_output[one.position] != ours.output[one.position]
            assert np.isfinite(one.log_q)


def test_a_text_is_told_the_same_whatever_texts_it_is_told_beside() -> None:
    pair, how = tiny_pair(likeness=0.9), settings("rejection", 0.8, 3)
    prompts = [(start, 5, 6) for start in range(8)]
    made = [live(pair, ids, how) for ids in prompts]
    texts = [
        TargetGeneration(ids, found.output, sampler(0.8, seed=i))
        for i, (ids, found) in enumerate(zip(prompts, made, strict=True))
    ]
    together = dict(simulate_rounds(pair, texts, how))
    for i, text in enumerate(texts):
        ((_, alone),) = simulate_rounds(pair, [text], how)
        assert (alone.rounds, alone.draft_output) == (together[i].rounds, together[i].draft_output)
