"""Records and a target elsewhere tell the gate what the target here does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from elsewhere import BlindTarget, TargetServer
from shop import PROMPTS
from tiny import sampler, tiny_pair

from draftloop.collection.collect import CollectSettings, generate_record
from draftloop.config import Config, Rule
from draftloop.data.records import Record
from draftloop.decoding.decoder import Settings
from draftloop.errors import DraftloopError
from draftloop.evaluation.gate_evaluation import evaluate_gate, score_outputs
from draftloop.evaluation.gate_target import LivePrompt, LoadedTarget, LoggedTarget
from draftloop.models.pair import Pair

MODES: list[tuple[Rule, float]] = [("greedy", 0.0), ("rejection", 0.9), ("block", 0.9), ("match", 0.9)]


@pytest.fixture
def pair() -> Pair:
    return tiny_pair(likeness=0.7)


def records_of(pair: Pair, rule: Rule, temperature: float, **filters: float) -> list[Record]:
    how = CollectSettings(Settings(sampler(temperature, **filters), rule, 3, 14))
    return [generate_record(pair, prompt, [5 + i, 7, 9 + i], how)[0] for i, prompt in enumerate(PROMPTS[::5])]


@pytest.mark.parametrize(("rule", "temperature"), MODES)
def test_scores_from_records_are_those_of_the_target(pair: Pair, rule: Rule, temperature: float) -> None:
    records = records_of(pair, rule, temperature, top_p=0.9)
    drafts: Any = {"bare": lambda: pair.draft}
    here = LoadedTarget().score(pair, records, rule, drafts, lambda: None)["bare"]
    logged = LoggedTarget().score(replace(pair, target=BlindTarget()), records, rule, drafts, lambda: None)["bare"]
    for one, other in zip(here, logged, strict=True):
        np.testing.assert_allclose(np.exp(other.log_p), np.exp(one.log_p), atol=1e-4)
        np.testing.assert_array_equal(other.log_q, one.log_q)
        assert other.position_sum is None


@pytest.mark.parametrize(("rule", "temperature"), MODES)
def test_expected_rounds_are_the_same(pair: Pair, rule: Rule, temperature: float) -> None:
    records = records_of(pair, rule, temperature)
    config = Config.model_validate({"speculative": {"rule": "auto" if rule == "greedy" else rule}})
    here = score_outputs(pair, records, None, None, config=config, most=4)
    blind = replace(pair, target=BlindTarget())
    logged = score_outputs(blind, records, None, None, config=config, most=4, target=LoggedTarget())
    for one, other in zip(here, logged, strict=True):
        assert other.champion_rounds == pytest.approx(one.champion_rounds, rel=1e-3)
        assert one.position_sums is not None
        assert other.position_sums is None


@pytest.mark.parametrize(("rule", "temperature"), MODES)
def test_a_prompt_decoded_elsewhere_is_scored_as_here(pair: Pair, rule: Rule, temperature: float) -> None:
    prompt = LivePrompt((3, 1, 4), sampler(temperature, seed=5), rule, 3, 30)
    here = LoadedTarget().decode(pair, prompt)
    there = LoggedTarget(TargetServer(pair)).decode(replace(pair, target=BlindTarget()), prompt)
    assert there.rounds == here.rounds
    np.testing.assert_allclose(np.exp(there.log_p), np.exp(here.log_p), atol=1e-4)
    np.testing.assert_allclose(np.exp(there.log_q), np.exp(here.log_q), atol=1e-4)


def test_a_whole_evaluation_needs_no_target_and_ends_as_with_one(pair: Pair) -> None:
    records = records_of(pair, "rejection", 0.9)
    config = Config.model_validate({"gate": {"live_prompts": 2}, "speculative": {"max_tokens": 14}})

    def evaluated(pair: Pair, target: Any) -> Any:
        return evaluate_gate(pair, records, None, None, attempt=1, config=config, seed=0, target=target)

    server = TargetServer(pair)
    without = evaluated(replace(pair, target=BlindTarget()), LoggedTarget(server))
    here = evaluated(pair, LoadedTarget(lambda _pair, most: server.latency(None, most)))
    assert without.decision.outcome == here.decision.outcome == "refuse"  # a draft is no better than itself
    assert without.decision.champion_length == pytest.approx(here.decision.champion_length, rel=1e-3)
    assert without.positions == {}
    assert here.positions["all"]["champion"] > 0
    assert without.profile == here.profile


def test_without_anybody_to_ask_there_are_scores_alone(pair: Pair) -> None:
    prompt = LivePrompt((3, 1, 4), sampler(0.8, seed=5), "rejection", 3, 30)
    calls: list[Callable[[], Any]] = [
        lambda: LoggedTarget().decode(pair, prompt),
        lambda: LoggedTarget().latency(pair, 4, lambda _done, _of: None),
    ]
    for call in calls:
        with pytest.raises(DraftloopError, match="nobody who has it can be asked"):
            call()
