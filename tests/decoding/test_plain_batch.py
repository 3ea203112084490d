"""Outputs that step together, and go on by themselves with the caches of their rows, are those of each alone."""

from __future__ import annotations

import mlx.core as mx
import pytest
import zoo
from mlx_lm.generate import generate_step
from tiny import sampler

from draftloop.decoding.decoder import Decoding, Settings
from draftloop.decoding.plain_batch import PlainBatch
from draftloop.models.pair import Pair

PROMPTS = (tuple(range(20)), (5, 9, 2), tuple(range(40, 71)))
LENGTH = 40


def alone(pair: Pair, prompt: tuple[int, ...]) -> list[int]:
    return [int(token) for token, _ in generate_step(mx.array(prompt), pair.target, max_tokens=LENGTH)]


@pytest.mark.parametrize("name", ["llama", "qwen3_5", "falcon_h1", "gpt_oss", "gemma3n", "baichuan_m1"])
@pytest.mark.some(3)
def test_greedy_outputs_that_change_between_speculation_and_a_batch_are_mlx_lms(name: str) -> None:
    pair = zoo.pair(name)
    settings = Settings(sampler(0.0), "greedy", 3, LENGTH, keep_bonus_draws=False)
    decodings = [Decoding(pair, prompt, settings) for prompt in PROMPTS]
    rounds = [iter(decoding) for decoding in decodings]
    found: list[list[int]] = [[] for _ in PROMPTS]
    for turn in range(3):  # speculation, then a batch of two and of all
        for i, one in enumerate(rounds):
            for _ in range(1 + (i + turn) % 2):
                found[i] += next(one).tokens
        members = [0, 2] if turn == 1 else [0, 1, 2]
        batch = PlainBatch(pair.target, [decodings[i] for i in members])
        for _ in range(4):
            for i, round_ in zip(members, batch.step(), strict=True):
                found[i] += round_.tokens
        batch.release()
    for i, one in enumerate(rounds):
        found[i] += [token for round_ in one for token in round_.tokens]
    assert found == [alone(pair, prompt) for prompt in PROMPTS]


def test_rows_have_a_random_stream_of_their_own() -> None:
    pair = zoo.pair("llama")

    def drawn(prompts: tuple[tuple[int, ...], ...]) -> list[list[int]]:
        decodings = [
            Decoding(pair, prompt, Settings(sampler(0.9, seed=len(prompt)), "rejection", 0, LENGTH))
            for prompt in prompts
        ]
        for decoding in decodings:
            next(decoding.turns())  # the prompt
        batch = PlainBatch(pair.target, decodings)
        steps = [batch.step() for _ in range(10)]
        return [[step[i].tokens[0] for step in steps] for i in range(len(prompts))]

    assert drawn(PROMPTS)[1] == drawn((PROMPTS[1], PROMPTS[0]))[0]
