"""Decoding is lossless with every kind of cache: greedy tokens are mlx-lm's, logged p and q those of a fresh pass."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import zoo
from mlx_lm.generate import generate_step
from tiny import sampler

from draftloop.caches import read_whole
from draftloop.decoding.decoder import Decoding, Settings
from draftloop.decoding.draft_length import AdaptiveDraftLength, LatencyProfile
from draftloop.decoding.sampling_filters import sampling_log_probs
from draftloop.models.pair import Pair

PROMPT = list(range(20))
PROFILE = LatencyProfile(t_draft=0.3, t_target=tuple(1.0 + 0.05 * k for k in range(9)))


def by_mlx_lm(pair: Pair, length: int) -> list[int]:
    return [int(token) for token, _ in generate_step(mx.array(PROMPT), pair.target, max_tokens=length)]


def greedy(pair: Pair, count: int | None, length: int) -> list[int]:
    settings = Settings(sampler(0.0), "greedy", 8 if count is None else count, length)
    policy = AdaptiveDraftLength(PROFILE, 8) if count is None else None
    return [token for round_ in Decoding(pair, PROMPT, settings, policy) for token in round_.tokens]


@pytest.mark.parametrize("name", [*zoo.FEW, *zoo.STATES[2:]])
@pytest.mark.some(5)
def test_greedy_tokens_are_those_of_mlx_lm_far_past_the_window(name: str) -> None:
    pair = zoo.pair(name)
    expected = by_mlx_lm(pair, 60)
    for count in (3, None):
        assert greedy(pair, count, 60) == expected


@pytest.mark.parametrize("name", [name for name in zoo.FEW if name != "gpt_oss"])
def test_p_and_q_of_sampled_outputs_are_those_of_a_fresh_pass(name: str) -> None:
    pair, how = zoo.pair(name), sampler(0.9, seed=3)
    rounds = list(Decoding(pair, PROMPT, Settings(how, "rejection", 4, 40)))
    output = [token for round_ in rounds for token in round_.tokens]
    tokens = mx.array([[*PROMPT, *output]])
    log_p, log_q = (
        np.array(sampling_log_probs(read_whole(model, tokens)[0, len(PROMPT) - 1 :], how, pair.width))
        for model in (pair.target, pair.draft)
    )
    for round_ in rounds:
        for at, proposal in enumerate(round_.verified, round_.start):
            assert np.exp(proposal.token_log_p) == pytest.approx(np.exp(log_p[at, proposal.token]), abs=1e-4)
            assert np.exp(proposal.draft_log_q) == pytest.approx(np.exp(log_q[at, proposal.draft_token]), abs=1e-4)
