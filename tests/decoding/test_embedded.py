"""On the embedded pair, a real one, speculation changes nothing in what the target says."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from near_ties import parts_at_a_near_tie
from tiny import sampler

from draftloop import reference
from draftloop.decoding.decoder import Decoding, Settings
from draftloop.models.pair import Pair
from draftloop.prompts.files import read_prompts

LENGTH = 24


@pytest.mark.parametrize("count", [4, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("domain", reference.DOMAINS)
def test_greedy_output_is_mlx_lms_plain_output_of_the_target(embedded_pair: Pair, domain: str, count: int) -> None:
    pair, accepted, near_ties = embedded_pair, 0, 0
    for prompt in read_prompts(reference.prompts_file(domain, "benchmark"))[:count]:
        ids = pair.tokenizer.encode(prompt.text)
        plain = []
        for token, _ in generate_step(mx.array(ids), pair.target, max_tokens=LENGTH):
            plain.append(int(token))
            if token in pair.stop_tokens:
                break
        rounds = list(Decoding(pair, ids, Settings(sampler(0.0), "greedy", 4, LENGTH)))
        ours = [token for found in rounds for token in found.tokens]
        near_ties += parts_at_a_near_tie(pair.target, ids, ours, plain)
        accepted += sum(found.accepted for found in rounds)
    assert near_ties <= 1
    assert accepted > 0  # else nothing was speculated, and nothing shown
