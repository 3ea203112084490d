"""A batch in which nothing is supervised: loss 0, finite gradients, counted, and the others as if it were not there."""

from __future__ import annotations

import random
from pathlib import Path

import mlx.core as mx
import pytest
from builders import NO_SYNC
from fault_table import Row
from mlx.utils import tree_flatten
from tiny import tiny_llama, tiny_pair
from workshop import Workshop, examples_of, records_of

from draftloop.config import Loss, Training
from draftloop.data.usable import NO_OUTPUT
from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig
from draftloop.training.batches import make_batch
from draftloop.training.dataset.batch_plan import Window
from draftloop.training.dataset.examples import Example
from draftloop.training.forward import make_forward
from draftloop.training.step import Learner
from draftloop.training.teacher import LiveTeacher

pytestmark = pytest.mark.row("empty or fully masked batch")

PAIR = tiny_pair(64)
EXAMPLES = [*examples_of(PAIR, 12), *examples_of(PAIR, 4, temperature=0.0, seed=3)]


def learner(loss: Loss) -> Learner:
    draft = tiny_llama(seed=2)
    lora.attach_fresh(draft, AdapterConfig(rank=2, scale=2.0), seed=0)
    teacher = LiveTeacher(make_forward(PAIR.target, "target", print), 64, EXAMPLES, 64, print)
    return Learner(draft, make_forward(draft, "draft", print), teacher, 64, Training(loss=loss, warmup_steps=0), 10)


def state(found: Learner) -> dict[str, bytes]:
    return {name: bytes(memoryview(value)) for name, value in found.state().items() if name != "random"}


def masked(choose: random.Random) -> list[Example]:
    """One to five examples without a label; some prompts are a single token long."""
    picked = choose.sample(EXAMPLES, choose.randint(1, 5))
    shorter = [e if choose.random() < 0.5 else Example(e.record_id, e.source, e.ids[:1], 1, e.sampler) for e in picked]
    return [example.shortened(0) for example in shorter]


@pytest.mark.parametrize("loss", ["ce", "kl", "lk"])
def test_a_masked_batch_has_loss_0_and_finite_gradients_and_changes_nothing(loss: Loss, row: Row) -> None:
    found, choose = learner(loss), random.Random(4)
    found.train(Window(0, (tuple(EXAMPLES[:4]),)), 0, 0, lambda: None)  # so that there are moments to change
    before, batches = state(found), row.count(5, 100)
    for _ in range(batches):
        examples = masked(choose)
        batch = make_batch(examples)
        assert (batch.tokens, mx.sum(batch.labels.weights).item()) == (0, 0.0)
        sums, gradients = found._sums_and_gradients(batch, found.teacher.teach(batch))
        assert (sums.loss.item(), sums.tokens.item(), sums.acceptance.item()) == (0.0, 0.0, 0.0)
        assert all(mx.all(leaf == 0.0).item() for _, leaf in tree_flatten(gradients))
        result = found.train(Window(0, (tuple(examples),)), 1, 0, lambda: None)
        assert (result.loss, result.tokens, result.gradient_norm, result.skipped_in_row) == (0.0, 0, 0.0, 1)
        assert [one.reason for one in result.skipped] == ["it has no supervised token"]
        assert result.skipped[0].record_ids == tuple(example.record_id for example in examples)
        assert state(found) == before
    row.did(batches, "masked batches")


def test_examples_without_a_label_among_others_change_no_bit_of_the_step(row: Row) -> None:
    choose = random.Random(5)
    for _ in range(row.count(3, 50)):
        found, clean = learner("lk"), learner("lk")
        good = [e for e in EXAMPLES[:6] if e.labels]
        longest = max(good, key=lambda example: len(example.ids))  # or the arrays would be of another shape
        extra = [example.shortened(0) for example in EXAMPLES[6:9] if len(example.ids) <= len(longest.ids)]
        together = found.train(Window(0, ((*good, *extra), tuple(masked(choose)))), 0, 0, lambda: None)
        alone = clean.train(Window(0, (tuple(good),)), 0, 0, lambda: None)
        assert (together.tokens, len(together.skipped)) == (alone.tokens, 1)
        assert together.loss == pytest.approx(alone.loss, rel=1e-5)
        assert together.gradient_norm == pytest.approx(alone.gradient_norm, rel=1e-5)
        row.did(1, "windows with an empty batch")


def test_generations_without_an_output_are_left_out_and_counted(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, {"epochs": 1}, NO_SYNC)
    empty = records_of(shop.pair, 3, target_output=(), draft_output=(), log_p=(), log_q=(), split="validation")
    shop.write([*records_of(shop.pair, 4), *empty])
    result = shop.train()
    assert result.left_out == {NO_OUTPUT: 3}
    assert result.skipped_batches == 0
