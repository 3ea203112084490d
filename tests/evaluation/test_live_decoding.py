"""Live decoding is what collecting does, gives every draft the same prompts, and stands beside its own estimate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_dirs import write_lora
from tiny import sampler

from draftloop.collection.collect import CollectSettings, generate_record
from draftloop.config import Models
from draftloop.data.prompt_groups import prompt_group
from draftloop.decoding.decoder import Settings
from draftloop.errors import PromptError
from draftloop.evaluation.live_decoding import decode_all, decode_live, samples_from_prompts
from draftloop.models.pair import Pair, load_pair
from draftloop.prompts.prompt import Prompt

SETTINGS = Settings(sampler(0.8, seed=4), "rejection", 3, 10)
PROMPTS = [Prompt("the target"), Prompt("what the draft wants")]


@pytest.fixture
def pair(small_models: Models) -> Pair:
    """A pair of one's own: live decoding leaves an adapter on."""
    return load_pair(small_models)


def test_a_prompt_is_decoded_as_collecting_decodes_it(small_pair: Pair) -> None:
    prompts = [[5, 6], [7, 8, 9]]
    told: list[int] = []
    decoded = decode_all(small_pair, prompts, SETTINGS, told.append)
    for ids, text, counted in zip(prompts, decoded.generations, decoded.outputs, strict=True):
        record, _ = generate_record(small_pair, Prompt("x"), ids, CollectSettings(SETTINGS))
        assert (text.output, text.sampler) == (record.target_output, record.sampler)
        assert [counted.drafted, counted.accepted] == np.sum(record.rounds, axis=0).tolist()
    assert told == [len(text.output) for text in decoded.generations]


def test_prompts_become_samples_of_the_targets_own_text(small_pair: Pair) -> None:
    found, skipped = samples_from_prompts(
        small_pair, [Prompt(""), *PROMPTS, Prompt("1" * 70)], SETTINGS, chat_template=False, max_prompt_length=40
    )
    assert [sample.group for sample in found] == [prompt_group(prompt.text) for prompt in PROMPTS]
    twice, _ = samples_from_prompts(
        small_pair,
        [Prompt("the target"), Prompt("a target, please")],
        SETTINGS,
        chat_template=False,
        max_prompt_length=40,
    )
    assert len(twice) == 2
    assert len({sample.group for sample in twice}) == 1
    assert [sample.generation.prompt_tokens for sample in found] == [
        tuple(small_pair.tokenizer.encode(prompt.text)) for prompt in PROMPTS
    ]
    assert skipped == [
        "prompt 1: empty, no text",
        "prompt 4: too long, 70 tokens, at most 40 expected (data.max_prompt_length)",
    ]


def test_prompts_of_which_none_can_be_used_are_refused(small_pair: Pair) -> None:
    with pytest.raises(PromptError, match="none of 2 prompts was usable: prompt 1: empty, no text; prompt 2: empty"):
        samples_from_prompts(small_pair, [Prompt(""), Prompt(" ")], SETTINGS, chat_template=True, max_prompt_length=40)


def test_the_draft_length_changes_no_greedy_text(small_pair: Pair) -> None:
    greedy = Settings(sampler(0.0), "greedy", 1, 12)
    texts = [decode_all(small_pair, [[5, 6]], replace(greedy, num_draft_tokens=k)).generations for k in (1, 4)]
    assert texts[0] == texts[1]


def test_every_rule_draft_and_draft_length_gets_its_row(pair: Pair, tmp_path: Path) -> None:
    pair = replace(pair, stop_tokens=frozenset())  # so that every output has its whole length
    adapter = write_lora(tmp_path / "v0001", pair.draft, amount=0.3)
    samples, _ = samples_from_prompts(pair, PROMPTS, SETTINGS, chat_template=False, max_prompt_length=40)
    told: list[tuple[int, int]] = []
    live = [("v0001", adapter), SETTINGS, lambda *counts: told.append(counts)]
    rows = decode_live(pair, samples, ["rejection", "match"], [1, 3], *live)
    assert [(row.rule, row.adapter, row.num_draft_tokens) for row in rows] == [
        (rule, name, k) for rule in ("rejection", "match") for name in ("none", "v0001") for k in (1, 3)
    ]
    all_ = 2 * 2 * 3 * (1 + len(samples))  # rules, drafts, K = 0 beside two others; a prompt that warms up
    assert told == [(done, all_) for done in range(1, all_ + 1)]
    for row in rows:
        assert 1 <= row.acceptance_length <= row.num_draft_tokens + 1
        assert 1 <= row.estimated_acceptance_length <= row.num_draft_tokens + 1
        assert row.tokens == 20
        assert min(row.tokens_per_second, row.plain_tokens_per_second) > 0


def test_each_draft_decodes_with_its_own_adapter(pair: Pair, tmp_path: Path) -> None:
    """An adapter that ruins the draft shows; one of zeros shows nothing."""
    ruin = write_lora(tmp_path / "ruin", pair.draft, amount=5.0)
    zero = write_lora(tmp_path / "zero", pair.draft, amount=0.0)
    greedy = Settings(sampler(0.0), "greedy", 3, 16)
    samples, _ = samples_from_prompts(pair, PROMPTS, greedy, chat_template=False, max_prompt_length=40)
    lengths = {}
    for name, path in (("ruin", ruin), ("zero", zero)):
        bare, adapted = decode_live(pair, samples, ["greedy"], [3], (name, path), greedy)
        lengths["none"], lengths[name] = bare.acceptance_length, adapted.acceptance_length
    assert lengths["ruin"] < lengths["none"] == lengths["zero"]


def test_the_greedy_estimate_beside_a_live_row_is_the_live_length(pair: Pair) -> None:
    greedy = Settings(sampler(0.0), "greedy", 3, 16)
    samples, _ = samples_from_prompts(pair, PROMPTS, greedy, chat_template=False, max_prompt_length=40)
    for row in decode_live(pair, samples, ["greedy"], [1, 2, 5], None, greedy):
        assert row.estimated_acceptance_length == pytest.approx(row.acceptance_length, abs=1e-12)
        assert row.acceptance_length > 1
