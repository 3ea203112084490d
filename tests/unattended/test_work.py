"""What an unattended run has in hand."""

from __future__ import annotations

import gc

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from draftloop.config import Config, Models, Training
from draftloop.unattended.work import loader


@pytest.mark.parametrize("teacher", ["logged", "none"])
def test_a_target_that_does_not_teach_stays_on_disk(small_models: Models, teacher: str) -> None:
    def taken(who: str) -> tuple[int, int]:
        gc.collect()  # what an earlier test left would be freed in the middle
        mx.synchronize()  # what is enqueued holds its arrays until it has run
        before = mx.get_active_memory()
        pair = loader(Config(training=Training(teacher=who)))(small_models, None, None)
        mx.synchronize()
        held = mx.get_active_memory() - before
        return held, sum(value.nbytes for _, value in tree_flatten(pair.target.parameters()))

    (taught, size), (untaught, _) = taken("live"), taken(teacher)
    assert taught - untaught > 0.9 * size  # loads of one pair differ by a few kB from each other
