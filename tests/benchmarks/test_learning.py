"""The learning benchmark treats the baseline as mlx-lm would, and lets nobody report on what was learned from."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import orjson
import pytest
from mlx import nn
from mlx_lm.tuner.trainer import default_loss
from tiny import tiny_pair
from workshop import VOCABULARY, examples_of

PAIR = tiny_pair(VOCABULARY)
EXAMPLES = examples_of(PAIR, 5)


@pytest.fixture
def scripts(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module


@pytest.fixture
def recipes(scripts: Any) -> ModuleType:
    return scripts("learning_recipes")


def test_the_baseline_learns_every_token_of_the_outputs_and_no_other(recipes: ModuleType) -> None:
    examples = [replace(one, ids=one.ids[: len(one.ids) - i]) for i, one in enumerate(EXAMPLES)]  # of unequal lengths
    ((batch, lengths),) = recipes._as_arrays([examples])
    loss, tokens = default_loss(PAIR.draft, batch, lengths)
    surprises = []
    for one in examples:
        log_q = nn.log_softmax(PAIR.draft(mx.array([one.ids[:-1]]))[0])
        surprises += [-log_q[i - 1, one.ids[i]].item() for i in range(one.prompt_length, len(one.ids))]
    assert tokens.item() == len(surprises)
    assert loss.item() == pytest.approx(np.mean(surprises), rel=1e-5)


def test_turns_are_those_of_a_round_after_the_other(recipes: ModuleType) -> None:
    w = np.random.default_rng(3).uniform(0.2, 0.9, 12)
    rng, many, turns = np.random.default_rng(4), 20_000, np.zeros(12)
    for _ in range(many):
        start = 0
        while start < 12:
            for at in range(start, min(start + recipes.K, 12)):
                turns[at] += 1
                if rng.random() >= w[at]:
                    break
            else:
                at = start + recipes.K  # all kept: the target's own token follows, without a proposal
            start = at + 1
    assert np.allclose(recipes._turns(w), turns / many, atol=0.015)


def test_a_prompt_that_is_learned_from_is_not_reported_on(scripts: Any, tmp_path: Path) -> None:
    worlds = scripts("learning_world")
    alone, shared, other = EXAMPLES[:3]
    again = replace(shared, ids=(*shared.ids[:-1], (shared.ids[-1] + 1) % VOCABULARY))  # another answer to it
    texts = {
        "failures": [other],
        "validation": [],
        "replay": [again],
        "reported prose": [alone, shared],
        "reported code": [],
    }
    (tmp_path / "texts-0.8.json").write_bytes(orjson.dumps(texts))
    assert worlds.world(PAIR, 0.8, tmp_path, worlds.Size()).reported == {"prose": [alone], "code": []}


@pytest.mark.parametrize(
    ("found", "following"),
    [
        ({6e-3: 0.5, 1.2e-2: 0.4}, [3e-3]),
        ({6e-3: 0.4, 1.2e-2: 0.5}, [2.4e-2]),
        ({3e-3: 0.3, 6e-3: 0.5, 1.2e-2: 0.4}, []),
        ({1.2e-2: 0.4, 2.4e-2: 0.5}, []),
    ],
)
def test_a_search_ends_only_where_both_neighbours_are_worse_or_there_are_none(
    scripts: Any, found: dict[float, float], following: list[float]
) -> None:
    assert scripts("learning")._outwards(found) == following


def test_runs_kept_in_a_file_come_back_where_code_and_texts_are_the_same(scripts: Any, tmp_path: Path) -> None:
    kept = scripts("learning_kept")
    made, same, other_code, other_texts, none = (tmp_path / name for name in ("a/e1", "b/e1", "c/e2", "d/e1", "e/e1"))
    for folder in (made, same, other_code, other_texts):
        folder.mkdir(parents=True)
        (folder / "texts-0.8.json").write_text("other" if folder is other_texts else "texts")
    (made / "run.json").write_text('{"steps": 3}')
    (made / "unfinished.json").write_text("{}")
    kept.pack(tmp_path / "runs.jsonl", made, {"run.json": 0.8})
    for folder in (same, other_code, other_texts, none):
        kept.unpack(tmp_path / "runs.jsonl", folder)
    assert sorted(path.name for path in same.iterdir()) == ["run.json", "texts-0.8.json"]
    assert orjson.loads((same / "run.json").read_bytes()) == {"steps": 3}
    assert (none / "run.json").is_file()
    assert not (other_code / "run.json").exists()
    assert not (other_texts / "run.json").exists()


def test_a_recipe_is_settled_when_its_search_is(scripts: Any) -> None:
    learning = scripts("learning")

    def job(recipe: str, rate: float | None, seed: int = 0) -> Any:
        return learning.Job(0.8, recipe, 200, seed, rate)

    found = learning.settled(
        {
            job("kl", 3e-3): 0.4,
            job("kl", 6e-3): 0.5,
            job("kl", 1.2e-2): 0.45,
            job("kl", 6e-3, 1): 0.5,
            job("kl, new answers x 3", 6e-3): 0.6,  # a part of ours, at the rate of kl
            job("tv", 6e-3): 0.5,
            job("tv", 1.2e-2): 0.6,  # 2.4e-2 is missing
            job("ours, as by default", None): 0.7,  # has no search
        },
        at=200,
    )
    assert {(one.recipe, one.learning_rate, one.seed) for one, chosen in found if chosen} == {
        ("kl", 6e-3, 0),
        ("kl", 6e-3, 1),
        ("kl, new answers x 3", 6e-3, 0),
        ("ours, as by default", None, 0),
    }
    assert {(one.recipe, one.learning_rate) for one, chosen in found if not chosen} == {("kl", 3e-3), ("kl", 1.2e-2)}
