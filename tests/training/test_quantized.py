"""A draft whose weights are 4 or 8 bits trains like any other: its adapter moves, and nothing else does."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from tiny import tiny_llama, tiny_pair
from workshop import adapter_bytes, examples_of, snapshot

from draftloop.config import Training
from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig
from draftloop.training.batches import make_batch
from draftloop.training.dataset.batch_plan import Window
from draftloop.training.forward import make_forward
from draftloop.training.memory.fitting import Fit
from draftloop.training.step import Learner
from draftloop.training.teacher import LiveTeacher

PAIR = tiny_pair(64)
EXAMPLES = examples_of(PAIR, 6)
KINDS = [(4, 32), (4, 64), (8, 32), (8, 64)]


def quantized(bits: int, group: int) -> nn.Module:
    model = tiny_llama(seed=2, width=64)
    nn.quantize(model, group_size=group, bits=bits)
    mx.eval(model.parameters())
    return model.freeze()


def learner(draft: nn.Module) -> Learner:
    lora.attach_fresh(draft, AdapterConfig(rank=4, scale=2.0, dropout=0.0), seed=0)
    teacher = LiveTeacher(make_forward(PAIR.target, "target", print), 64, EXAMPLES, 64, print)
    forward = make_forward(draft, "draft", print)
    return Learner(draft, forward, teacher, 64, Training(loss="kl", warmup_steps=0, learning_rate=5e-3), 100)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_the_loss_falls_and_the_base_stays_byte_for_byte(tmp_path, bits, group, recompute):
    draft = quantized(bits, group)
    base = snapshot(draft)
    found = learner(draft)
    found.fit = Fit(recompute=recompute)
    before = adapter_bytes(draft)
    window = Window(0, (tuple(EXAMPLES),))
    losses = [(lambda one: one.loss / one.tokens)(found.train(window, step, 0, lambda: None)) for step in range(12)]
    assert losses[-1] < losses[0] - 0.05
    found.fit = Fit()
    assert snapshot(draft) == base
    after = adapter_bytes(draft)
    assert all(after[name] != before[name] for name in before)

    lora.save_adapter(draft, tmp_path)
    again = quantized(bits, group)
    lora.attach_directory(again, tmp_path)
    assert adapter_bytes(again) == after
    inputs = make_batch(EXAMPLES).inputs
    assert mx.array_equal(again(inputs), draft.eval()(inputs))


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_every_leaf_of_the_adapter_gets_a_gradient(bits, group):
    found = learner(quantized(bits, group))
    noise = {name: 0.1 * mx.random.normal(leaf.shape) for name, leaf in lora.adapter_parameters(found.draft).items()}
    lora.load_parameters(found.draft, noise)  # a fresh adapter's A has none: its B is 0
    _, gradients = found._evaluated_with_gradient(EXAMPLES)
    for name, gradient in tree_flatten(gradients):
        assert mx.all(mx.isfinite(gradient)).item(), name
        assert mx.any(gradient != 0).item(), name
