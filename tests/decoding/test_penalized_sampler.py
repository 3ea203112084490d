"""Penalized outputs have the target's penalized distribution, whatever is drafted."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from chance import FITS, p_value
from tiny import sampler, tiny_pair

from draftloop.decoding.decoder import Decoding, Settings
from draftloop.decoding.penalties import Penalties
from draftloop.errors import ConfigError

STRONG = Penalties(repetition=1.7, presence=1.0, frequency=0.5)
PROMPT = (3, 1, 4, 1, 5)


def reference(logits: np.ndarray, prompt: list[int], output: list[int], how: Penalties) -> np.ndarray:
    """The formulas, one token at a time."""
    found = logits.astype(np.float64).copy()
    for token in set(prompt) | set(output):
        found[token] = found[token] / how.repetition if found[token] > 0 else found[token] * how.repetition
    for token in set(output):
        found[token] -= how.presence + how.frequency * output.count(token)
    return found


def greedy(count: int, how: Penalties) -> list[int]:
    pair = tiny_pair(likeness=0.9)
    settings = Settings(sampler(0.0), "greedy", count, 40, keep_bonus_draws=False, penalties=how)
    return [token for round_ in Decoding(pair, PROMPT, settings) for token in round_.tokens]


@pytest.mark.parametrize("how", [STRONG, Penalties(repetition=1.3), Penalties(presence=-0.7), Penalties(frequency=1.5)])
def test_greedy_outputs_are_those_of_the_formulas_whatever_is_drafted(how: Penalties) -> None:
    pair = tiny_pair(likeness=0.9)
    expected: list[int] = []
    for _ in range(40):
        logits = np.array(pair.target(mx.array([[*PROMPT, *expected]]))[0, -1, : pair.width])
        expected.append(int(np.argmax(reference(logits, list(PROMPT), expected, how))))
        if expected[-1] in pair.stop_tokens:
            break
    for count in (0, 1, 3, 6):
        assert greedy(count, how) == expected
    assert greedy(3, Penalties()) != expected


@pytest.mark.parametrize(("rule", "count"), [("rejection", 2), ("block", 2), ("match", 2), ("rejection", 0)])
@pytest.mark.some(2)
def test_sampled_outputs_have_the_penalized_law(rule, count: int) -> None:
    pair, length, samples = tiny_pair(4, likeness=0.3), 3, 400
    prompt, how = [1, 2], Penalties(repetition=1.5, presence=0.8, frequency=0.4)
    expected = np.zeros(4**length)
    for place in range(4**length):
        output = [place // 4 ** (length - 1 - i) % 4 for i in range(length)]
        chance = 1.0
        for at, token in enumerate(output):
            logits = np.array(pair.target(mx.array([[*prompt, *output[:at]]]))[0, -1, :4])
            scaled = reference(logits, prompt, output[:at], how) / 1.1
            weights = np.exp(scaled - scaled.max())
            chance *= weights[token] / weights.sum()
        expected[place] = chance
    observed = np.zeros(4**length)
    for seed in range(samples):
        settings = Settings(sampler(1.1, seed=seed), rule, count, length, keep_bonus_draws=False, penalties=how)
        tokens = [token for round_ in Decoding(pair, prompt, settings) for token in round_.tokens]
        observed[int("".join(map(str, tokens)), 4)] += 1
    assert p_value(observed, expected) > FITS


def test_bonus_draws_of_a_penalized_output_are_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match="expected keep_bonus_draws=False"):
        Settings(sampler(0.8), "rejection", 2, 10, penalties=STRONG)
