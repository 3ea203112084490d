from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from tiny import sampler, tiny_llama

from draftloop.training.batches import make_batch
from draftloop.training.dataset.examples import Example
from draftloop.training.forward import make_forward


def example(prompt: tuple[int, ...], output: tuple[int, ...], temperature: float = 0.8) -> Example:
    return Example("id", "source", prompt + output, len(prompt), sampler(temperature))


SHORT, LONG = example((1, 2), (3, 4)), example((5, 6, 7), (8, 9, 10, 11), temperature=0.0)


def test_a_batch_by_hand():
    batch = make_batch([SHORT, LONG])
    assert batch.inputs.shape == (2, 16)
    assert batch.inputs[0, :4].tolist() == [1, 2, 3, 0]
    assert batch.inputs[1, :7].tolist() == [5, 6, 7, 8, 9, 10, 0]
    assert batch.tokens == 6
    assert batch.positions.shape == batch.labels.tokens.shape == batch.labels.weights.shape == (64,)
    assert batch.positions[:6].tolist() == [1, 2, 16 + 2, 16 + 3, 16 + 4, 16 + 5]
    assert batch.labels.tokens[:6].tolist() == [3, 4, 8, 9, 10, 11]
    assert batch.labels.weights.tolist() == [1.0] * 6 + [0.0] * 58
    assert batch.labels.greedy.tolist()[:6] == [False] * 2 + [True] * 4
    assert batch.labels.match is None
    assert batch.labels.temperature[:6, 0].tolist() == pytest.approx([0.8, 0.8, 1.0, 1.0, 1.0, 1.0])


def test_the_label_stands_right_after_the_position_that_predicts_it():
    batch = make_batch([SHORT, LONG])
    flat = np.array(batch.inputs).reshape(-1)
    ids = {0: SHORT.ids, 1: LONG.ids}
    for at, label in zip(batch.positions[:6].tolist(), batch.labels.tokens[:6].tolist(), strict=True):
        row, column = divmod(at, 16)
        assert flat[at] == ids[row][column]
        assert ids[row][column + 1] == label


def test_few_shapes_for_many_lengths():
    shapes = {make_batch([example((1,), (2,) * n)]).inputs.shape for n in range(1, 65)}
    assert shapes == {(1, 16), (1, 32), (1, 48), (1, 64)}


def test_padding_is_invisible_whatever_id_fills_it():
    model = tiny_llama()
    forward = make_forward(model, "draft", print)
    batch = make_batch([SHORT, LONG])
    alone = make_batch([SHORT])
    logits = forward(batch.inputs, batch.positions)
    other = np.array(batch.inputs)
    other[0, len(SHORT.inputs) :] = 63
    other[1, len(LONG.inputs) :] = 17
    assert mx.array_equal(forward(mx.array(other), batch.positions)[:6], logits[:6])
    assert mx.allclose(forward(alone.inputs, alone.positions)[:2], logits[:2], rtol=1e-4, atol=1e-5)


def test_without_labels_nothing_counts():
    batch = make_batch([example((1, 2, 3), ())])
    assert batch.tokens == 0
    assert not mx.any(batch.labels.weights).item()


def test_id_0_as_a_real_label_counts_like_any_other():
    batch = make_batch([example((1,), (0, 0, 0))])
    assert batch.tokens == 3
    assert mx.sum(batch.labels.weights).item() == 3
