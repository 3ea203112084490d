"""The gate: each condition of a promotion failing by itself, together, and the cases in which there is no verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from draftloop.config import Gate
from draftloop.decoding.draft_length import LatencyProfile
from draftloop.evaluation.gate import Decision, Forecast, SourceCheck, decide
from draftloop.evaluation.paired_rounds import ScoredOutput
from draftloop.evaluation.units_and_levels import alpha_of_attempt

TOKENS = 60
K_MAX = 8
FAST = LatencyProfile(t_draft=0.05, t_target=tuple(1.0 + 0.05 * k for k in range(K_MAX + 1)))
SLOW = LatencyProfile(t_draft=5.0, t_target=tuple(1.0 + k for k in range(K_MAX + 1)))


def rounds_at(weight: float) -> tuple[float, ...]:
    """Expected rounds of TOKENS tokens at K = 1 to K_MAX where each proposal is kept with probability `weight`."""
    return tuple(TOKENS / sum(weight**a for a in range(k + 1)) for k in range(1, K_MAX + 1))


def texts(
    prompts: int, gain: float, *, source: str = "prose", seed: int = 0, spread: float = 0.01
) -> list[ScoredOutput]:
    """One text a prompt; the candidate keeps `gain` more of its proposals, give or take `spread`."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.4, 0.7, prompts)
    gains = rng.normal(gain, spread, prompts)
    return [
        ScoredOutput(f"{source} {i}", source, TOKENS, rounds_at(weight), rounds_at(weight + more))
        for i, (weight, more) in enumerate(zip(weights, gains, strict=True))
    ]


def judged(scored: Sequence[ScoredOutput], **options: Any) -> Decision:
    usual = {"num_draft_tokens": 4, "attempt": 1, "settings": Gate(), "seed": 0}
    return decide(scored, **(usual | {"profile": FAST} | options))


def test_a_candidate_that_is_clearly_better_is_promoted_and_the_reasons_say_what_was_proven() -> None:
    found = judged(texts(20, 0.08))
    assert found.outcome == "promote"
    assert (found.prompts, found.texts, found.tokens, found.num_draft_tokens) == (20, 20, 20 * TOKENS, 4)
    assert found.p_value == 2.0**-20
    assert (found.exact, found.alpha) == (True, alpha_of_attempt(1, 0.05))
    assert [reason.split(":")[0] for reason in found.reasons] == [
        "acceptance length +15.3% (2.428 against 2.107) over 20 held-out prompts",
        "source prose does not lose 4%",
        "the forecast speed-up does not fall",
    ]
    assert found.reasons[0].endswith("more than chance labels give, p = 9.54e-07 <= 0.0304 at attempt 1")


def test_the_numbers_are_ratios_of_sums_and_their_difference() -> None:
    scored = texts(20, 0.08)
    found = judged(scored)
    champion = 20 * TOKENS / sum(text.champion_rounds[3] for text in scored)
    candidate = 20 * TOKENS / sum(text.candidate_rounds[3] for text in scored)
    assert found.champion_length == pytest.approx(champion, rel=1e-12)
    assert found.candidate_length == pytest.approx(candidate, rel=1e-12)
    assert found.difference == pytest.approx(candidate - champion, rel=1e-9)
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert 0 < found.ci_low < found.difference < found.ci_high


def test_two_drafts_that_score_alike_differ_by_exactly_zero_and_the_candidate_is_refused() -> None:
    found = judged(texts(20, 0.0, spread=0.0))
    assert found.outcome == "refuse"
    assert (found.difference, found.ci_low, found.ci_high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert [(check.drop, check.drop_upper) for check in found.sources] == [(0.0, 0.0)]
    assert found.champion_forecast == found.candidate_forecast
    (reason,) = found.reasons
    assert "no more than chance labels may give, p = 1 > 0.0304" in reason


def test_a_gain_that_chance_may_give_is_refused_for_that_alone() -> None:
    """No source loses and the forecast rises; that is not enough."""
    found = judged(texts(40, 0.001, spread=0.01, seed=4), settings=Gate(max_drop_share=0.25))
    assert found.outcome == "refuse"
    assert found.difference is not None
    assert found.difference > 0
    assert len(found.reasons) == 1
    assert "chance labels may give" in found.reasons[0]


def test_a_source_that_loses_refuses_what_gains_overall() -> None:
    found = judged([*texts(40, 0.1), *texts(15, -0.03, source="code")])
    assert found.outcome == "refuse"
    assert [reason.split(":")[0] for reason in found.reasons] == [
        "source code may lose 4% or more",
        "source code loses more than 1%",
    ]
    assert found.reasons[0].endswith("over 15 prompts, p = 0.998 > 0.05")
    assert [(check.unit, check.needs_proof, check.ok) for check in found.units] == [
        ("code", True, False),
        ("prose", True, True),
    ]
    assert [(check.source, check.judged, check.ok) for check in found.sources] == [
        ("code", True, False),
        ("prose", True, True),
    ]


@pytest.mark.parametrize(("spread", "outcome"), [(0.002, "promote"), (0.03, "promote"), (0.2, "refuse")])
def test_a_source_need_not_gain_as_long_as_it_does_not_lose(spread: float, outcome: str) -> None:
    """As far as its prompts can tell: with 30 of them that differ much, a loss of 4% cannot be ruled out."""
    found = judged([*texts(40, 0.1), *texts(30, 0.0, source="code", spread=spread, seed=3)])
    assert found.outcome == outcome


def test_a_small_loss_passes_where_it_is_below_the_share_and_not_where_it_is_above() -> None:
    def outcome(share: float, gain: float) -> str:
        scored = [*texts(60, 0.1), *texts(60, gain, source="code", spread=0.004, seed=2)]
        return judged(scored, settings=Gate(max_drop_share=share, material_drop_share=0.5)).outcome

    assert [outcome(share, -0.02) for share in (0.1, 0.02)] == ["promote", "refuse"]


def test_a_proven_loss_refuses_even_where_it_is_below_the_share_that_may_be_lost() -> None:
    found = judged([*texts(60, 0.1), *texts(60, -0.01, source="code", spread=0.002)])
    code = found.units[0]
    assert code.p_not_worse <= 0.05
    assert code.p_loss <= 0.025
    assert found.outcome == "refuse"
    (reason,) = found.reasons
    assert reason.startswith("source code loses more than 1%: ")


def test_a_loss_is_refused_under_one_name_as_under_three() -> None:
    """33 prompts that lose, as one source and as three of 11, each below the minimum."""
    losing = texts(33, -0.1, source="code")
    cut = [replace(text, source=f"code {i % 3}") for i, text in enumerate(losing)]
    whole, pooled = (judged([*texts(100, 0.1), *scored]) for scored in (losing, cut))
    assert (whole.outcome, pooled.outcome) == ("refuse", "refuse")
    rest = pooled.units[-1]
    assert (rest.unit, rest.sources, rest.prompts) == (None, ("code 0", "code 1", "code 2"), 33)
    assert (rest.p_loss, rest.p_not_worse) == (whole.units[0].p_loss, whole.units[0].p_not_worse)
    assert pooled.reasons[0].startswith("the rest may lose 4% or more: ")


@pytest.mark.parametrize(("gain", "outcome"), [(0.01, "promote"), (-0.05, "refuse")])
@pytest.mark.parametrize("prompts", [5, 11])
def test_a_rest_too_small_to_be_proved_is_refused_where_its_loss_is_proven(
    prompts: int, gain: float, outcome: str
) -> None:
    """With five prompts too: 2^-5 is held against 0.05, however many large sources there are."""
    large = [one for i in range(6) for one in texts(12, 0.1, source=f"large {i}", seed=i)]
    found = judged([*large, *texts(prompts, gain, source="code", spread=0.005)])
    assert found.outcome == outcome
    rest = found.units[-1]
    assert (rest.unit, rest.prompts, rest.needs_proof, rest.ok) == (None, prompts, False, outcome == "promote")
    assert (rest.loss_alpha, found.units[0].loss_alpha) == (0.05, 0.05 / 7)
    assert [(check.source, check.judged) for check in found.sources][:2] == [("code", False), ("large 0", True)]


def test_daily_names_of_one_source_are_judged_together() -> None:
    """No source has prompts enough: all are the rest, and what gains is promoted."""
    scored = [replace(text, source=f"2026-11-{1 + i // 5}") for i, text in enumerate(texts(40, 0.1))]
    found = judged(scored)
    assert found.outcome == "promote"
    assert [check.unit for check in found.units] == [None]
    assert len(found.sources) == 8


def test_a_loss_is_held_against_the_level_over_the_number_of_units() -> None:
    """Twelve prompts of which two do not lose: proven as the only unit beside another, not as one of forty."""
    losing = [*texts(10, -0.2, source="code", spread=0.0), *texts(14, 0.2, source="code", spread=0.0)[10:12]]
    settings = Gate(max_drop_share=0.9)
    few = judged([*texts(12, 0.3), *losing], settings=settings).units
    others = [one for i in range(39) for one in texts(12, 0.3, source=f"other {i}")]
    many = judged([*others, *losing], settings=settings).units
    assert [(units[0].unit, units[0].loss_alpha) for units in (few, many)] == [("code", 0.025), ("code", 0.05 / 40)]
    assert few[0].p_loss == many[0].p_loss
    assert [units[0].ok for units in (few, many)] == [False, True]


def test_the_deprecated_drop_in_tokens_a_round_stands_in_for_the_share() -> None:
    scored = [*texts(60, 0.1), *texts(60, -0.02, source="code", spread=0.004, seed=2)]
    length = judged(scored).units[0].champion_length
    assert length == pytest.approx(2.1, abs=0.1)
    for drop in (0.04, 0.2):
        same = Gate(max_drop_share=drop / length, material_drop_share=0.5)
        given = Gate(max_drop=drop, material_drop_share=0.5)
        assert judged(scored, settings=given).units[0] == judged(scored, settings=same).units[0]
        assert judged(scored, settings=given).outcome == ("promote" if drop == 0.2 else "refuse")


def test_the_verdict_shows_how_many_prompts_got_worse_and_by_how_much() -> None:
    """One prompt in ten loses, all others gain more: better on average, and said."""
    scored = [*texts(36, 0.1, spread=0.0), *(replace(t, group=f"loses {t.group}") for t in texts(4, -0.2, spread=0.0))]
    found = judged(scored)
    assert found.outcome == "promote"
    assert found.worse_share == 0.1
    changes = sorted(TOKENS / text.candidate_rounds[3] - TOKENS / text.champion_rounds[3] for text in scored)
    assert found.worst_decile == pytest.approx(np.quantile(changes, 0.1))


def test_a_source_of_one_prompt_has_no_bound() -> None:
    found = judged([*texts(40, 0.1), *texts(1, 0.02, source="code")])
    assert found.sources[0].drop_upper is None
    assert (found.sources[0].judged, found.sources[0].ok, found.outcome) == (False, True, "promote")


def test_the_bound_that_is_shown_of_a_source_is_one_sided_at_95_percent() -> None:
    """Its two-sided interval at 95% would reach further."""
    code = texts(30, 0.0, source="code", spread=0.02)
    checked = judged(code).sources[0]
    overall = judged(code)
    assert overall.ci_low is not None
    assert checked.drop_upper is not None
    assert checked.drop < checked.drop_upper < -overall.ci_low


ONE_PAYS = LatencyProfile(t_draft=0.05, t_target=(1.0, 1.05, *(3.0 + k for k in range(K_MAX - 1))))
"""Costs of a machine on which no draft length but 1 is worth its while."""


def better_but_at_one(scored: Sequence[ScoredOutput]) -> list[ScoredOutput]:
    """The same texts with a candidate that is a little worse than the champion at K = 1."""
    return [
        replace(text, candidate_rounds=(text.champion_rounds[0] * 1.05, *text.candidate_rounds[1:])) for text in scored
    ]


def test_a_forecast_that_falls_refuses_what_gains() -> None:
    found = judged(better_but_at_one(texts(20, 0.08)), profile=ONE_PAYS)
    assert found.outcome == "refuse"
    (reason,) = found.reasons
    assert reason.startswith("the forecast speed-up falls: ")
    assert found.candidate_forecast is not None
    assert found.champion_forecast is not None
    assert found.candidate_forecast.speed_up < found.champion_forecast.speed_up


def test_every_condition_that_fails_is_named() -> None:
    found = judged([*texts(20, -0.02), *texts(15, -0.05, source="code")])
    assert found.outcome == "refuse"
    assert [" ".join(reason.split()[:3]) for reason in found.reasons][1:] == [
        "source code may",
        "source code loses",
        "source prose loses",
        "the forecast speed-up",
    ]
    assert "no more than chance labels may give" in found.reasons[0]


def test_each_draft_is_forecast_at_its_own_best_draft_length() -> None:
    found = judged(texts(20, 0.15))
    assert found.champion_forecast is not None
    assert found.candidate_forecast is not None
    assert 1 <= found.champion_forecast.best_k < found.candidate_forecast.best_k <= K_MAX
    assert found.num_draft_tokens == 4


def test_where_speculation_never_pays_the_best_draft_length_is_zero_and_the_speed_up_one() -> None:
    found = judged(texts(20, 0.08), profile=SLOW)
    assert found.champion_forecast == found.candidate_forecast == Forecast(0, 1.0)
    assert found.reasons[-1].startswith("with either draft no draft length is forecast to beat plain decoding")
    assert found.outcome == "promote"


def test_the_forecast_looks_no_further_than_the_costs() -> None:
    short = LatencyProfile(FAST.t_draft, FAST.t_target[:3])
    found = judged(texts(20, 0.2), profile=short)
    assert found.candidate_forecast is not None
    assert found.candidate_forecast.best_k == 2


def test_the_comparison_is_at_the_draft_length_that_was_asked_for() -> None:
    """Better at K = 1 alone: promoted there, refused at 2."""
    scored = [
        replace(text, candidate_rounds=(0.9 * text.champion_rounds[0], *text.champion_rounds[1:]))
        for text in texts(20, 0.0)
    ]
    assert [judged(scored, num_draft_tokens=k).outcome for k in (1, 2)] == ["promote", "refuse"]


@pytest.mark.parametrize("prompts", [0, 1, 11])
def test_with_too_few_prompts_there_is_no_verdict_and_nothing_is_spent(prompts: int) -> None:
    found = judged(texts(prompts, 0.1))
    assert found.outcome == "inconclusive"
    assert found.reasons == (f"{prompts} held-out prompts: a verdict needs 12; nothing was spent",)
    assert (found.p_value, found.alpha, found.exact, found.difference, found.sources) == (None, None, None, None, ())


def test_texts_without_a_verdict_need_no_scores() -> None:
    unscored = [ScoredOutput(f"{i}", "prose", TOKENS, (), ()) for i in range(11)]
    assert judged(unscored).outcome == "inconclusive"


def test_prompts_are_counted_by_group_and_not_by_text() -> None:
    """Three outputs of each of four prompts are four prompts."""
    scored = [replace(text, group=f"{i % 4}") for i, text in enumerate(texts(12, 0.1))]
    found = judged(scored)
    assert (found.outcome, found.prompts, found.texts) == ("inconclusive", 4, 12)


def test_a_later_attempt_must_prove_more() -> None:
    """p = 2^-12 passes at attempt 1 to 5 of alpha 0.05, and at the first alone of alpha 0.0005."""
    scored = texts(12, 0.1)
    strict = Gate(alpha=0.0005)
    outcomes = [judged(scored, attempt=attempt).outcome for attempt in range(1, 6)]
    assert outcomes == ["promote"] * 5
    outcomes = [judged(scored, attempt=attempt, settings=strict).outcome for attempt in range(1, 6)]
    assert outcomes == ["promote"] + ["refuse"] * 4


def test_the_same_seed_gives_the_same_decision() -> None:
    scored = texts(50, 0.005)
    assert judged(scored, seed=1) == judged(scored, seed=1)
    assert judged(scored, seed=1).p_value != judged(scored, seed=2).p_value


@pytest.mark.parametrize("prompts", [5, 13, 60])
def test_a_decision_is_plain_json(prompts: int) -> None:
    tree = asdict(judged([*texts(prompts, 0.01), *texts(1, 0.01, source="code")]))
    assert json.loads(json.dumps(tree, allow_nan=False))["outcome"] == tree["outcome"]
    assert plain(tree)


def plain(value: Any) -> bool:
    """No NumPy scalar hides among the values, not even one that is a float as well."""
    if isinstance(value, dict):
        return all(map(plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return type(value) in (str, int, float, bool, type(None))


def test_the_check_of_plain_values_catches_a_numpy_float() -> None:
    check = SourceCheck("prose", 12, 2.0, 2.0, np.float64(0.0), 0.0, True, True)
    assert not plain(asdict(check))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempt": 0}, "attempt 0: expected 1 or more"),
        ({"num_draft_tokens": 0}, "K 0, attempt 1: expected 1 or more"),
        ({"num_draft_tokens": 9}, "rounds go up to K = 8: expected 9"),
        ({"profile": LatencyProfile(0.1, (1.0,))}, "a latency profile of 1 target width"),
        ({"profile": replace(FAST, t_draft=-1.0)}, "expected positive seconds"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judged(texts(20, 0.1), **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidate_rounds": (30.0,)}, "up to different K"),
        ({"candidate_rounds": (float("nan"),) * K_MAX}, "candidate has a number"),
        ({"champion_rounds": (0.0,) * K_MAX}, "champion has a number"),
        ({"tokens": 0}, "tokens has a number"),
    ],
)
def test_unusable_texts_are_refused(changes: dict[str, Any], message: str) -> None:
    scored = texts(20, 0.1)
    with pytest.raises(ValueError, match=message):
        judged([replace(scored[0], **changes), *scored[1:]])


def test_the_gate_refuses_more_often_than_the_test_alone_and_never_less() -> None:
    """A promotion implies p <= alpha, which the benchmark of the error rate relies on."""
    found = [
        judged([*texts(20, 0.02, seed=seed), *texts(12, 0.0, source="code", seed=seed, spread=0.08)])
        for seed in range(60)
    ]
    passed = [one.p_value is not None and one.alpha is not None and one.p_value <= one.alpha for one in found]
    promoted = [one.outcome == "promote" for one in found]
    assert all(ok for ok, promotion in zip(passed, promoted, strict=True) if promotion)
    assert 0 < sum(promoted) < sum(passed)
