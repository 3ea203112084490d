"""What is shipped is compared on the same texts: a twin differs by nothing, a worse one by what it lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from model_dirs import write_lora
from tiny import sampler

from draftloop.config import Models
from draftloop.decoding.teacher_forced import TargetGeneration
from draftloop.evaluation.benchmark import Sample, compare
from draftloop.export.verify import Measured, below_in_words, measure_export
from draftloop.models.pair import Pair, load_pair


@pytest.fixture
def pair(small_models: Models) -> Pair:
    return load_pair(small_models)


@pytest.fixture
def adapter(pair: Pair, tmp_path: Path) -> tuple[str, Path]:
    return "v0001", write_lora(tmp_path / "adapter", pair.draft, amount=0.3)


def samples(count: int = 8, temperature: float = 0.8) -> list[Sample]:
    rng = np.random.default_rng(0)
    texts = (tuple(int(i) for i in rng.integers(1, 300, 12)) for _ in range(count))
    return [Sample(TargetGeneration(ids[:3], ids[3:], sampler(temperature)), f"group {ids}") for ids in texts]


def shipped(pair: Pair, small_models: Models, adapter: Path | None, noise: float = 0.0) -> Pair:
    """The pair with another draft of the same files, its weights stirred."""
    draft = load_pair(small_models, adapter).draft
    mx.random.seed(0)
    draft.update(tree_map(lambda leaf: leaf + noise * mx.random.normal(leaf.shape), draft.parameters()))
    return replace(pair, draft=draft)


def measured(pair: Pair, other: Pair, adapter: tuple[str, Path], texts: list[Sample] | None = None) -> Measured:
    return measure_export(pair, other, adapter, texts or samples(), 3, seed=0)


def test_the_bare_draft_and_the_adapter_have_the_numbers_of_the_benchmark(
    pair: Pair, small_models: Models, adapter: tuple[str, Path]
) -> None:
    found = measured(pair, shipped(pair, small_models, adapter[1]), adapter)
    expected = compare(pair, samples(), "auto", [3], adapter, seed=0)
    assert [row for row in found.results if row.adapter != "exported"] == expected.results
    gained = [change for change in found.comparison if (change.of, change.against) == ("v0001", "none")]
    assert [change.delta_acceptance_length for change in gained] == [
        change.delta_acceptance_length for change in expected.comparison
    ]
    same = expected.conditions.keys() - {"num_draft_tokens"}
    assert {name: found.conditions[name] for name in same} == {name: expected.conditions[name] for name in same}


def test_a_draft_that_is_the_same_differs_by_exactly_nothing(
    pair: Pair, small_models: Models, adapter: tuple[str, Path]
) -> None:
    found = measured(pair, shipped(pair, small_models, adapter[1]), adapter)
    assert [(row.adapter, row.rule) for row in found.results] == [
        (name, rule) for rule in ("rejection", "block", "match") for name in ("none", "v0001", "exported")
    ]
    differences = [c for c in found.comparison if (c.of, c.against) == ("exported", "v0001")]
    assert [(c.delta_acceptance_length, c.ci_low, c.ci_high) for c in differences] == [(0, 0, 0)] * 3
    assert found.lost() == []
    assert all(change.delta_acceptance_length < 0 for change in found.below_bare_draft())


def test_a_draft_that_lost_something_is_told_apart_and_by_how_much(
    pair: Pair, small_models: Models, adapter: tuple[str, Path]
) -> None:
    texts = samples(temperature=0.0)
    teacher = [replace(sample, generation=replace(sample.generation, output=_greedy(pair, sample))) for sample in texts]
    zero = ("v0001", write_lora(adapter[1].parent / "zero", pair.draft, amount=0.0))
    found = measured(pair, shipped(pair, small_models, None, noise=0.5), zero, teacher)
    base, _, worse = found.results
    (lost,) = found.lost()
    assert (lost.of, lost.against, lost.rule) == ("exported", "v0001", "greedy")
    assert lost.delta_acceptance_length == pytest.approx(worse.acceptance_length - base.acceptance_length)
    assert lost.delta_acceptance_length < -0.1
    (below,) = found.below_bare_draft()
    assert (below.of, below.against, below.rule) == ("exported", "none", "greedy")
    said = below_in_words(below)
    assert f"{-below.delta_acceptance_length:.3f} less than that of the draft without any adapter" in said
    assert "which may be chance" not in said
    assert "which may be chance" in below_in_words(replace(below, ci_high=0.1))
    assert "interval" not in below_in_words(replace(below, ci_low=None, ci_high=None))  # one prompt gives none


def _greedy(pair: Pair, sample: Sample) -> tuple[int, ...]:
    ids = list(sample.generation.prompt_tokens)
    for _ in range(9):
        ids.append(int(mx.argmax(pair.target(mx.array([ids]))[0, -1]).item()))
    return tuple(ids[len(sample.generation.prompt_tokens) :])
