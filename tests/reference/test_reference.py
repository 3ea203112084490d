"""The embedded pair is a real pair in mlx-lm's own format, small enough, with prompts that its models never read."""

from __future__ import annotations

import json

import mlx_lm
import pytest

from draftloop import reference
from draftloop.config import Models, Speculative
from draftloop.data.prompt_groups import prompt_group
from draftloop.decoding.generate import decoding_settings
from draftloop.evaluation.benchmark import compare
from draftloop.evaluation.live_decoding import samples_from_prompts
from draftloop.models.pair import Pair, load_pair
from draftloop.prompts.files import read_prompts
from scripts.reference_pair.build import card

SETS = [(domain, part) for domain in reference.DOMAINS for part in ("collect", "benchmark")]


def test_both_models_and_the_prompts_take_at_most_24_mb() -> None:
    folders = (reference.TARGET, reference.DRAFT, reference.PROMPTS)
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) <= 24_000_000


@pytest.mark.parametrize("path", [reference.TARGET, reference.DRAFT], ids=["target", "draft"])
def test_plain_mlx_lm_loads_each_model_offline_and_generates(path: object) -> None:
    model, tokenizer = mlx_lm.load(str(path))
    assert mlx_lm.generate(model, tokenizer, "def read(self):", max_tokens=4)


def test_the_chat_template_is_the_bare_content(embedded_pair: Pair) -> None:
    messages = [{"role": "user", "content": "Return the"}]
    ids = embedded_pair.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert ids == embedded_pair.tokenizer.encode("Return the")


def test_prompts_for_collecting_and_for_the_benchmark_are_disjoint_and_distinct() -> None:
    groups = {key: [prompt_group(p.text) for p in read_prompts(reference.prompts_file(*key))] for key in SETS}
    for key, found in groups.items():
        assert len(found) == len(set(found)) >= (300 if key[1] == "collect" else 150)
    everything = [group for found in groups.values() for group in found]
    assert len(everything) == len(set(everything))


def test_the_card_says_what_its_numbers_file_says() -> None:
    facts = json.loads((reference.ROOT / "card.json").read_text())
    assert (reference.ROOT / "CARD.md").read_text() == card(facts)
    for name in ("target", "draft"):
        assert facts[name]["curve"][-1]["code_loss"] < 4.0
    assert facts["target"]["recipe"]["domains"] == ["prose", "code"]
    assert facts["draft"]["recipe"]["domains"] == ["code"]


@pytest.mark.slow
def test_the_bare_draft_is_weak_on_prose_and_better_on_its_own_domain() -> None:
    pair = load_pair(Models())
    settings = decoding_settings(Speculative(temperature=0.8, max_tokens=96))
    accepted = {}
    for domain in reference.DOMAINS:
        prompts = read_prompts(reference.prompts_file(domain, "benchmark"))[:40]
        samples, _ = samples_from_prompts(pair, prompts, settings, chat_template=True, max_prompt_length=200)
        report = compare(pair, samples, "rejection", [4], None, seed=0)
        accepted[domain] = report.results[0].acceptance_per_position
    assert 0.30 <= accepted["prose"] <= 0.55
    assert accepted["code"] > accepted["prose"] + 0.1
