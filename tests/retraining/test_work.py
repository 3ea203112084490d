"""What an unattended run has in hand."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from builders import make_record
from mlx.utils import tree_flatten

from draftloop.config import Config, Models, Training
from draftloop.data_directory import DataDirectory
from draftloop.models.pair import Pair
from draftloop.retraining.work import Work, loader


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


def test_the_records_of_a_run_are_those_that_its_pair_can_be_evaluated_on(small_pair: Pair, tmp_path: Path) -> None:
    data, ours, beyond = DataDirectory(tmp_path), small_pair.identity, small_pair.width
    logged: dict[str, dict[str, Any]] = {
        "a": {},
        "another target": {"pair": replace(ours, target="z")},
        "empty": {"target_output": (), "draft_output": ()},
        "b": {"pair": replace(ours, draft="z")},
        "a prompt beyond": {"prompt_tokens": (1, beyond)},
        "an output beyond": {"target_output": (1, beyond), "draft_output": (1, beyond)},
        "another tokenizer": {"pair": replace(ours, tokenizer="z")},
        "c": {},
    }
    for prompt, values in logged.items():
        data.log.append(make_record(**{"prompt": prompt, "pair": ours, **values}))
    work = Work(data, Config(), loader(Config()), lambda _line: None, None, None, lambda: 0.0, None)
    assert [record.prompt for record in work.records(small_pair)] == ["a", "b", "c"]
