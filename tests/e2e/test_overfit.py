"""A small draft learns forty texts by heart, and says them through plain mlx-lm: nothing in between is faked."""

from __future__ import annotations

import math
import random
from pathlib import Path

import mlx_lm
import pytest
from builders import make_record
from mlx_lm.sample_utils import make_sampler
from model_dirs import VOCABULARY, write_llama
from tiny import sampler, tiny_llama

from draftloop.config import Config, Models
from draftloop.data.record_lines import to_line
from draftloop.data.records import Record
from draftloop.data_directory import DataDirectory
from draftloop.models.pair import Pair, load_pair
from draftloop.training.train import train

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

WORDS = ("the", "draft", "target", "text", "reads", "wants", "learns", "from", "and", "what", "same", "that", "one")
EXAMPLES = 40
WIDTH = 128
FIRST = 3  # tokens that must come back


def records(pair: Pair) -> list[Record]:
    """Forty prompts, each with a text of its own, as the target would have left them at temperature 0."""
    words = random.Random(0)
    found = []
    for number in range(EXAMPLES):
        prompt = f"Text {number}:"
        output = tuple(pair.tokenizer.encode(" " + " ".join(words.choices(WORDS, k=6))))[:10]
        values = {
            "prompt": prompt,
            "prompt_tokens": tuple(pair.tokenizer.encode(prompt)),
            "target_output": output,
            "draft_output": tuple((token + 1) % VOCABULARY for token in output),
            "log_p": (0.0,) * len(output),
            "log_q": (None,) * len(output),
            "sampler": sampler(0.0),
            "rule": "greedy",
            "pair": pair.identity,
            "finish": "length",
        }
        found.append(make_record(**values))
    return found


def write_random(directory: Path, seed: int) -> Path:
    """A model that knows nothing yet: every token is about as likely as any other."""
    model = tiny_llama(VOCABULARY, width=WIDTH, seed=seed, sharpness=1.0)
    shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "head_dim": WIDTH // 2}
    return write_llama(directory, model=model, **shape)


def test_a_small_draft_learns_forty_examples_by_heart_and_says_them_through_generate(tmp_path: Path) -> None:
    directories = {name: write_random(tmp_path / name, seed) for name, seed in (("target", 1), ("draft", 2))}
    models = Models(target=str(directories["target"]), draft=str(directories["draft"]))
    pair = load_pair(models)
    examples = records(pair)
    data = DataDirectory(tmp_path)
    data.log.path.parent.mkdir()
    data.log.path.write_bytes(b"".join(map(to_line, examples)))
    settings = {
        "loss": "ce",
        "epochs": 40,
        "learning_rate": 5e-3,
        "replay_ratio": 0.0,
        "steps_per_report": 100,
        "save_every": 1000,
        "lora": {"rank": 32, "scale": 2.0},
    }
    config = Config.model_validate({"models": models.model_dump(), "training": settings})
    result = train(pair, data, config)

    assert result.train_loss_before == pytest.approx(math.log(VOCABULARY), abs=0.5)
    assert result.train_loss_after < 2.0
    draft, tokenizer = mlx_lm.load(models.draft, adapter_path=result.path)
    greedy = make_sampler(temp=0.0)
    said = 0
    for record in examples:
        prompt, expected = list(record.prompt_tokens), tokenizer.decode(list(record.target_output[:FIRST]))
        text = mlx_lm.generate(draft, tokenizer, prompt, max_tokens=FIRST, sampler=greedy)
        said += text.strip() == expected.strip()  # the streaming detokenizer drops a leading space
    assert said >= 0.9 * EXAMPLES
    base, _ = mlx_lm.load(models.draft)
    first = examples[0]
    untrained = mlx_lm.generate(base, tokenizer, list(first.prompt_tokens), max_tokens=FIRST, sampler=greedy)
    assert untrained.strip() != tokenizer.decode(list(first.target_output[:FIRST])).strip()
