from __future__ import annotations

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.lora import LoRALinear

from draftloop.training.batches import Batch
from draftloop.training.chunked_loss import ChunkedLoss
from draftloop.training.losses import Labels, TeacherProbs
from draftloop.training.teacher import TeacherParts

POSITIONS, WIDTH, RANK, VOCABULARY = 64, 32, 64, 16_384


@pytest.fixture(scope="module")
def head() -> nn.Module:
    """An adapted head, of which the adapter's B is by far the largest array that learns."""
    mx.random.seed(0)
    module = LoRALinear.from_base(nn.Linear(WIDTH, VOCABULARY, bias=False), r=RANK)
    module.freeze()
    module.unfreeze(keys=["lora_a", "lora_b"])
    module.lora_b = 0.1 * mx.random.normal(module.lora_b.shape)
    mx.eval(module.parameters())
    return module


def rows() -> mx.array:
    return mx.random.normal((POSITIONS, WIDTH), key=mx.random.key(1))


def loss_of(head: nn.Module, kind: str = "kl") -> ChunkedLoss:
    """Under a teacher that names a few ids, so that next to nothing but the head is large."""
    ids = mx.random.randint(0, VOCABULARY, (POSITIONS, 4), key=mx.random.key(2))
    told = TeacherProbs.of(mx.log(mx.full((POSITIONS, 5), 0.2)), ids)
    asked = Labels(mx.zeros(POSITIONS, mx.int32), mx.ones((POSITIONS, 1)), mx.ones(POSITIONS))
    batch = Batch((), mx.zeros((1, 1)), mx.arange(POSITIONS), asked, POSITIONS)
    mx.eval(told.p, told.negative_entropy, told.tokens, asked.tokens, asked.temperature, asked.weights)
    return ChunkedLoss(kind, head, batch, TeacherParts((told,), POSITIONS), VOCABULARY, head)


def gradients(head: nn.Module, kind: str, size: int) -> dict[str, mx.array]:
    """With respect to the rows and to the head's adapter, in pieces of `size` positions."""
    loss = loss_of(head, kind)
    of_rows = mx.grad(lambda x: loss.sums(x, size).loss)(rows())
    of_head = nn.value_and_grad(head, lambda x: loss.sums(x, size).loss)(rows())[1]
    return {"rows": of_rows, **dict(tree_flatten(of_head))}


@pytest.mark.parametrize("kind", ["kl", "lk"])
def test_an_adapted_head_learns_from_many_pieces_what_it_learns_from_one(head, kind):
    whole, pieces = gradients(head, kind, POSITIONS), gradients(head, kind, 2)
    assert pieces.keys() == whole.keys() == {"rows", "lora_a", "lora_b"}
    for name, expected in whole.items():
        assert mx.any(expected).item()
        assert mx.allclose(pieces[name], expected, rtol=1e-4, atol=1e-5 * mx.abs(expected).max().item()), name


@pytest.mark.usefixtures("on_the_cpu")
def test_what_is_kept_of_an_adapted_head_s_gradient_does_not_grow_with_the_pieces(head):
    loss, inputs = loss_of(head), rows()
    mx.eval(inputs)

    def peak(size: int) -> int:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(nn.value_and_grad(head, lambda x: loss.sums(x, size).loss)(inputs))
        return int(mx.get_peak_memory() - before)

    few, many = peak(POSITIONS // 4), peak(1)
    assert many < few + head.lora_b.nbytes
