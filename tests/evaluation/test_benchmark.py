"""The estimate is what a live run gives, comparisons are paired, a rule is refused on texts that it does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import make_record
from model_dirs import write_lora
from tiny import sampler, tiny_pair

from draftloop.config import Models, Rule
from draftloop.data.usable import FOREIGN_ID, NO_OUTPUT, NO_PROMPT, describe_counts
from draftloop.decoding.decoder import Settings
from draftloop.decoding.teacher_forced import TargetGeneration
from draftloop.errors import ConfigError, PromptError
from draftloop.evaluation.benchmark import (
    Sample,
    accepted,
    compare,
    left_out,
    logged_samples,
    rules_that_fit,
    samples_of,
)
from draftloop.evaluation.estimator import total
from draftloop.evaluation.live_decoding import decode_all
from draftloop.evaluation.scoring import score
from draftloop.models.pair import Pair, load_pair

ROW = [
    "adapter",
    "rule",
    "num_draft_tokens",
    "acceptance_per_position",
    "acceptance_rate",
    "acceptance_length",
    "ci_low",
    "ci_high",
]


@pytest.fixture
def pair(small_models: Models) -> Pair:
    """A pair of one's own: comparing leaves an adapter on."""
    return load_pair(small_models)


def samples(temperature: float = 0.8, groups: int = 4, count: int = 6, seed: int = 0) -> list[Sample]:
    """Texts of any ids; their groups repeat."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        prompt, output = (tuple(int(token) for token in rng.integers(1, 300, size)) for size in (3, 5 + i))
        found.append(Sample(TargetGeneration(prompt, output, sampler(temperature)), f"group {i % groups}"))
    return found


def test_every_text_that_is_scored_is_told_of(pair: Pair, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    texts = [*samples(0.0, count=2), *samples(0.8, count=3)]
    compare(pair, texts, "auto", [1], None, seed=0, on_text=lambda *at: told.append(at))
    of = 2 + 3 * 3  # the greedy ones, and the others under each of three rules
    assert told == [(done, of) for done in range(of + 1)]


# -- the estimate and live decoding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("likeness", [0.9, 0.99])
def test_the_greedy_estimate_is_the_live_run_exactly(count: int, likeness: float) -> None:
    pair = replace(tiny_pair(likeness=likeness), stop_tokens=frozenset({9, 30}))
    prompts = [[start, 5, 6] for start in range(5)]
    decoded = decode_all(pair, prompts, Settings(sampler(0.0), "greedy", count, 21))
    scores = score(pair, decoded.generations, "greedy", {"none": None})["none"]
    for found, counted in zip(scores, decoded.outputs, strict=True):
        estimated = accepted(found, "greedy", count)
        assert (estimated.rounds, estimated.drafted, estimated.accepted, estimated.tokens) == (
            counted.rounds,
            counted.drafted,
            counted.accepted,
            counted.tokens,
        )


@pytest.mark.parametrize("rule", ["rejection", "block", "match"])
def test_the_sampling_estimate_is_within_four_standard_errors_of_live_on_the_same_texts(rule: Rule) -> None:
    pair, count = replace(tiny_pair(likeness=0.97), stop_tokens=frozenset({9, 30})), 3
    prompts = [[first, second, 5] for first in range(8) for second in range(8)]
    decoded = decode_all(pair, prompts, Settings(sampler(0.7), rule, count, 14))
    scores = score(pair, decoded.generations, rule, {"none": None})["none"]

    def distance(name: str, k: int) -> float:
        """Mean of live minus estimate over the texts, in standard errors of that mean."""
        gaps = [
            getattr(counted, name) - getattr(accepted(found, rule, k), name)
            for found, counted in zip(scores, decoded.outputs, strict=True)
        ]
        return float(np.mean(gaps) / (np.std(gaps, ddof=1) / np.sqrt(len(gaps))))

    assert total(decoded.outputs).acceptance_length > 1.2  # something was accepted
    for name in ("rounds", "drafted", "accepted"):
        assert abs(distance(name, count)) < 4
    assert abs(distance("drafted", 1)) > 4  # the estimate for another K is told apart


# -- what is compared -------------------------------------------------------------------------------------------------


def test_a_report_has_exactly_the_keys_that_others_read(pair: Pair, tmp_path: Path) -> None:
    adapter = write_lora(tmp_path / "v0001", pair.draft, amount=0.1)
    report = json.loads(json.dumps(compare(pair, samples(), "auto", [1, 4], ("v0001", adapter), seed=0).to_json()))
    assert set(report) == {"results", "comparison", "conditions"}
    assert [list(row) for row in report["results"]] == [ROW] * 12
    cases = [(row["adapter"], row["rule"], row["num_draft_tokens"]) for row in report["results"]]
    assert sorted(cases) == sorted(
        (name, rule, k) for rule in ("rejection", "block", "match") for k in (1, 4) for name in ("none", "v0001")
    )
    for change in report["comparison"]:
        assert change.keys() >= {"rule", "num_draft_tokens", "delta_acceptance_length", "ci_low", "ci_high"}
    assert [(change["rule"], change["num_draft_tokens"]) for change in report["comparison"]] == [
        ("rejection", 1),
        ("rejection", 4),
        ("block", 1),
        ("block", 4),
        ("match", 1),
        ("match", 4),
    ]
    conditions = report["conditions"]
    assert conditions["rules"] == ["rejection", "block", "match"]
    assert conditions["num_draft_tokens"] == [1, 4]
    assert (conditions["adapter"], conditions["texts"], conditions["prompt_groups"]) == ("v0001", 6, 4)
    assert conditions["tokens"] == sum(len(sample.generation.output) for sample in samples())
    assert conditions["samplers"] == [{"temperature": 0.8, "top_p": 1.0, "min_p": 0.0, "top_k": 0}]
    assert conditions["pair"] == {name: getattr(pair.identity, name) for name in ("target", "draft", "tokenizer")}


def test_rows_are_ratios_of_sums_and_their_intervals_hold_them(small_pair: Pair) -> None:
    chosen = samples()
    scores = score(small_pair, [sample.generation for sample in chosen], "rejection", {"none": None})["none"]
    (row,) = compare(small_pair, chosen, "rejection", [4], None, seed=0).results
    summed = total(accepted(found, "rejection", 4) for found in scores)
    assert row.acceptance_length == pytest.approx(summed.acceptance_length)
    assert row.acceptance_rate == pytest.approx(summed.acceptance_rate)
    assert row.acceptance_per_position == pytest.approx(np.concatenate([found.position for found in scores]).mean())
    assert row.ci_low is not None
    assert row.ci_high is not None
    assert row.ci_low < row.acceptance_length < row.ci_high


def test_a_difference_is_adapter_minus_bare_draft(pair: Pair, tmp_path: Path) -> None:
    adapter = write_lora(tmp_path / "v0001", pair.draft, amount=0.3)
    report = compare(pair, samples(), "rejection", [2], ("v0001", adapter), seed=0)
    bare, adapted = report.results
    (change,) = report.comparison
    assert change.delta_acceptance_length == pytest.approx(adapted.acceptance_length - bare.acceptance_length)
    assert change.delta_acceptance_per_position == pytest.approx(
        adapted.acceptance_per_position - bare.acceptance_per_position
    )
    assert change.ci_low is not None
    assert change.ci_high is not None
    assert change.ci_low < change.delta_acceptance_length < change.ci_high


def test_an_adapter_of_zeros_makes_a_difference_of_exactly_nothing(pair: Pair, tmp_path: Path) -> None:
    zero = write_lora(tmp_path / "zero", pair.draft, amount=0.0)
    for change in compare(pair, samples(), "auto", [1, 2, 8], ("zero", zero), seed=0).comparison:
        assert (change.delta_acceptance_length, change.ci_low, change.ci_high) == (0.0, 0.0, 0.0)
        assert (change.delta_acceptance_per_position, change.position_ci_low, change.position_ci_high) == (0, 0, 0)


def test_without_an_adapter_there_is_nothing_to_compare(small_pair: Pair) -> None:
    report = compare(small_pair, samples(), "rejection", [2], None, seed=0)
    assert [row.adapter for row in report.results] == ["none"]
    assert report.comparison == []
    assert report.conditions["adapter"] == "none"


def test_one_prompt_group_has_no_interval(small_pair: Pair) -> None:
    (row,) = compare(small_pair, samples(groups=1), "rejection", [2], None, seed=0).results
    assert (row.ci_low, row.ci_high) == (None, None)


def test_the_same_seed_gives_the_same_report(small_pair: Pair) -> None:
    chosen = samples(groups=12, count=12)
    first, again, other = (compare(small_pair, chosen, "rejection", [2], None, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.results[0].ci_low != other.results[0].ci_low


# -- rules and texts --------------------------------------------------------------------------------------------------


def test_auto_reports_every_rule_that_some_text_fits() -> None:
    sampled, greedy = samples(), samples(0.0)
    assert rules_that_fit(sampled, "auto") == ["rejection", "block", "match"]
    assert rules_that_fit(greedy, "auto") == ["greedy"]
    assert rules_that_fit(sampled + greedy, "auto") == ["greedy", "rejection", "block", "match"]
    assert rules_that_fit(sampled + greedy, "match") == ["match"]


@pytest.mark.parametrize(
    ("temperature", "rule", "expected"),
    [(0.8, "greedy", "rejection, block or match"), (0.0, "rejection", "greedy"), (0.0, "match", "greedy")],
)
def test_a_rule_that_no_text_fits_is_a_usage_error(temperature: float, rule: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"rule {rule} does not fit outputs.*; expected {expected}") as caught:
        compare(tiny_pair(), samples(temperature), rule, [1], None, seed=0)
    assert caught.value.exit_code == 2


def test_each_rule_is_measured_on_the_texts_that_it_fits(small_pair: Pair) -> None:
    sampled, greedy = samples(), samples(0.0, count=2)
    mixed = compare(small_pair, [*greedy, *sampled], "auto", [2], None, seed=0)
    assert [row.rule for row in mixed.results] == ["greedy", "rejection", "block", "match"]
    assert mixed.results[0] == compare(small_pair, greedy, "greedy", [2], None, seed=0).results[0]
    assert mixed.results[1] == compare(small_pair, sampled, "rejection", [2], None, seed=0).results[0]
    assert [sample.generation.sampler.temperature for sample in samples_of("greedy", [*greedy, *sampled])] == [0.0, 0.0]


def test_a_generation_without_output_or_beyond_the_narrower_model_is_left_out_and_counted(small_pair: Pair) -> None:
    widest = small_pair.width
    records = [
        make_record(pair=small_pair.identity, **values)
        for values in (
            {},
            {"target_output": (), "draft_output": ()},
            {"prompt_tokens": ()},
            {"prompt_tokens": (1, widest)},
            {"target_output": (5, widest), "draft_output": (5, widest)},
            {"target_output": (5, 6), "draft_output": (5, widest)},
            {"prompt_tokens": (widest - 1,)},
        )
    ]
    kept = logged_samples(records, small_pair)
    assert [sample.generation for sample in kept] == [TargetGeneration.of(records[0]), TargetGeneration.of(records[6])]
    counts = left_out(records, small_pair)
    assert counts == {NO_OUTPUT: 1, NO_PROMPT: 1, FOREIGN_ID: 3}
    assert describe_counts(counts) == f"1 ({NO_OUTPUT}), 1 ({NO_PROMPT}), 3 ({FOREIGN_ID})"
    compare(small_pair, kept, "rejection", [2], None, seed=0)


def test_logged_generations_of_another_target_or_tokenizer_are_left_out(small_pair: Pair) -> None:
    ours = small_pair.identity
    identities = [ours, replace(ours, target="x"), replace(ours, tokenizer="x"), replace(ours, draft="x")]
    records = [make_record(prompt_tokens=(i, 5), pair=identity) for i, identity in enumerate(identities)]
    kept = logged_samples(records, small_pair)
    assert [sample.generation.prompt_tokens for sample in kept] == [(0, 5), (3, 5)]
    assert kept[0].generation == TargetGeneration.of(records[0])
    unusable = r"none of 2 held-out generations can be used: 2 \(another target or tokenizer\); collect with this"
    with pytest.raises(PromptError, match=unusable):
        logged_samples(records[1:3], small_pair)
