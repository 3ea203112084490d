"""One tokenizer, logits of different widths: it works, and nothing beyond the shared ids is proposed or emitted.

The rows that are only padding are made the likeliest of all, so that a decoder which did not mask them would show it.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, islice, product
from pathlib import Path

import mlx.core as mx
import pytest
from fault_table import Row
from mlx import nn
from model_dirs import VOCABULARY, write_llama
from tiny import sampler, tiny_llama

from draftloop.collection.collect import CollectSettings, generate_record
from draftloop.config import Models, Rule
from draftloop.decoding.decoder import Settings
from draftloop.models.pair import Pair, load_pair
from draftloop.prompts.prompt import Prompt

pytestmark = pytest.mark.row("padded pair")

RULES: tuple[tuple[Rule, float], ...] = (("greedy", 0.0), ("rejection", 1.0), ("match", 1.0), ("rejection", 5.0))


def loud_padding(rows: int, seed: int) -> nn.Module:
    """A model whose padded rows outshout the others."""
    model = tiny_llama(rows, seed=seed)
    model.lm_head.weight[VOCABULARY:] *= 20.0
    mx.eval(model.parameters())
    return model


def padded_pair(root: Path, target_rows: int, draft_rows: int) -> Pair:
    for name, rows, seed in (("target", target_rows, 1), ("draft", draft_rows, 2)):
        write_llama(root / name, rows=rows, model=loud_padding(rows, seed))
    return replace(load_pair(Models(target=str(root / "target"), draft=str(root / "draft"))), stop_tokens=frozenset())


@pytest.mark.parametrize(
    ("target_rows", "draft_rows"),
    [(VOCABULARY + 64, VOCABULARY), (VOCABULARY, VOCABULARY + 64)],
    ids=["target", "draft"],
)
def test_no_id_beyond_the_shared_ones_is_proposed_or_emitted(
    tmp_path: Path, target_rows: int, draft_rows: int, row: Row
) -> None:
    pair = padded_pair(tmp_path, target_rows, draft_rows)
    assert pair.width == VOCABULARY
    wider = pair.target if target_rows > draft_rows else pair.draft
    preferred = mx.argmax(wider(mx.array([list(range(1, 41))])), axis=-1)
    assert mx.mean(preferred >= VOCABULARY).item() > 0.5  # what an unmasked one would emit
    generations = row.count(4, 200)
    for number, ((rule, temperature), k) in enumerate(islice(cycle(product(RULES, (1, 4, 7))), generations)):
        settings = Settings(sampler(temperature, seed=number), rule, k, 24)
        record, _ = generate_record(pair, Prompt("a prompt"), [1 + number % 200, 7, 9], CollectSettings(settings))
        ids = [*record.draft_output, *record.target_output, *(d.draft_token for d in record.disagreements)]
        assert max(ids) < VOCABULARY
        assert len(record.target_output) == 24
    row.did(generations, "generations")
