"""What was found of a model is kept for it alone, and no longer than it lives."""

from __future__ import annotations

import gc

from mlx import nn

from draftloop.caches import once_per_model


def test_each_model_is_tried_once() -> None:
    tried: list[nn.Module] = []
    find = once_per_model(lambda model: tried.append(model) or len(tried))
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert [find(one), find(other), find(one), find(other)] == [1, 2, 1, 2]


def test_a_model_with_the_identity_of_one_that_is_gone_is_tried_anew() -> None:
    find = once_per_model(lambda model: [model.weight.shape[0]])
    for size in range(1, 12):
        model = nn.Linear(2, size)
        assert find(model) == [size]
        del model
        gc.collect()
