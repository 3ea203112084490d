"""Verification emits the target's distribution, whatever the draft proposes; and the check that says so can fail."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product

import mlx.core as mx
import numpy as np
import pytest
from chance import BROKEN, FITS, p_value
from tiny import sampler

from draftloop.config import SAMPLING
from draftloop.decoding.acceptance_rules import (
    Verification,
    block_thresholds,
    residual_weights,
    rule_for,
    verify_proposals,
)
from draftloop.decoding.draws import draw_tokens, exponentials_per_draw
from draftloop.decoding.random_stream import RandomStream
from draftloop.decoding.sampling_filters import sampling_log_probs, sampling_probs
from draftloop.errors import ConfigError

VOCABULARY, SAMPLES = 5, 30_000
# Two Markov chains: the next id depends on the last one only, so every probability can be tabulated.
TARGET = mx.random.normal((VOCABULARY, VOCABULARY), key=mx.random.key(1)) * 1.5
DRAFT = mx.random.normal((VOCABULARY, VOCABULARY), key=mx.random.key(2)) * 1.5

Verify = Callable[[mx.array, mx.array, mx.array, mx.array, mx.array, str], Verification]


def randomness(*leading: int, verdicts: int, draws: int, seed: int = 7) -> tuple[mx.array, mx.array]:
    """As the decoder has them: so many uniforms, and the exponentials of so many draws of one of five tokens."""
    random = RandomStream(seed)
    exponentials = random.exponentials(*leading, draws, exponentials_per_draw(VOCABULARY))
    return mx.array(random.uniforms(*leading, verdicts)), mx.array(exponentials)


def probabilities(table: mx.array, settings: object) -> mx.array:
    return mx.exp(sampling_log_probs(table, settings, VOCABULARY))


def first_two_tokens(settings: object, count: int, rule: str, verification: Verify) -> np.ndarray:
    """SAMPLES x 2 ids: one round after id 0, completed by the target where the round emitted one token only."""
    p_table, q_table = probabilities(TARGET, settings), probabilities(DRAFT, settings)

    def one(verdicts: mx.array, draws: mx.array) -> mx.array:
        last, proposals = mx.array(0), []
        for i in range(count):
            last = draw_tokens(q_table[last], draws[i])
            proposals.append(last)
        drafted = mx.stack(proposals)
        before = mx.concatenate([mx.array([0], drafted.dtype), drafted])
        verdict = verification(p_table[before], q_table[before[:-1]], drafted, verdicts, draws[count:-1], rule)
        accepted, following = verdict.accepted, verdict.following
        first = mx.where(accepted > 0, drafted[0], following)
        fresh = draw_tokens(p_table[first], draws[-1])
        second = drafted[1] if count > 1 else following
        second = mx.where(accepted > 1, second, mx.where(accepted == 1, following, fresh))
        return mx.stack([first, second])

    return np.array(mx.vmap(one)(*randomness(SAMPLES, verdicts=count, draws=2 * count + 2)))


def p_of(tokens: np.ndarray, settings: object) -> float:
    """p-value of the hypothesis that the pairs of ids come from the target's chain, started at id 0."""
    table = np.exp(np.array(sampling_log_probs(TARGET, settings, VOCABULARY), dtype=np.float64))
    expected = (table[0][:, None] * table).reshape(-1)
    observed = np.bincount(tokens[:, 0] * VOCABULARY + tokens[:, 1], minlength=VOCABULARY**2)
    return p_value(observed, expected)


SETTINGS = [sampler(1.0), sampler(0.6), sampler(0.9, top_p=0.8), sampler(1.2, top_k=3), sampler(0.8, min_p=0.1)]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
@pytest.mark.parametrize("rule", SAMPLING)
def test_what_is_emitted_has_the_targets_distribution(rule: str, settings: object, count: int) -> None:
    assert p_of(first_two_tokens(settings, count, rule, verify_proposals), settings) > FITS


def resample_from_p(
    p: mx.array, q: mx.array, proposals: mx.array, verdicts: mx.array, draws: mx.array, rule: str
) -> Verification:
    """The classic mistake: after a refusal it samples p again, instead of what p has more of than q."""
    verdict = verify_proposals(p, q, proposals, verdicts, draws, rule)
    return replace(verdict, following=draw_tokens(p[verdict.accepted], draws[-1]))


def accept_by_the_wrong_ratio(
    p: mx.array, q: mx.array, proposals: mx.array, verdicts: mx.array, draws: mx.array, rule: str
) -> Verification:
    """Another one: q was not the distribution that was sampled (here: at another temperature)."""
    return verify_proposals(p, probabilities(mx.log(q), sampler(0.5)), proposals, verdicts, draws, rule)


def accept_each_by_itself(
    p: mx.array, q: mx.array, proposals: mx.array, verdicts: mx.array, draws: mx.array, rule: str
) -> Verification:
    """A third: the residual of `block` with the whole of p after every accepted prefix, as `rejection` has it."""
    verdict = verify_proposals(p, q, proposals, verdicts, draws, rule)
    count = q.shape[0]
    before = q[mx.minimum(verdict.accepted, count - 1)] * (verdict.accepted < count)
    return replace(verdict, following=draw_tokens(mx.maximum(p[verdict.accepted] - before, 1e-30), draws[-1]))


@pytest.mark.parametrize("rule", ["rejection", "block"])
@pytest.mark.parametrize("broken", [resample_from_p, accept_by_the_wrong_ratio])
def test_the_same_check_catches_a_broken_verification(broken: Verify, rule: str) -> None:
    assert p_of(first_two_tokens(SETTINGS[0], 2, rule, broken), SETTINGS[0]) < BROKEN


def test_the_same_check_catches_a_block_whose_residual_forgets_what_was_kept() -> None:
    assert p_of(first_two_tokens(SETTINGS[0], 4, "block", accept_each_by_itself), SETTINGS[0]) < BROKEN


def test_rejection_and_block_accept_one_as_often_as_min_p_q_says_and_match_as_p_times_q() -> None:
    p, q = probabilities(TARGET[:1], SETTINGS[0]), probabilities(DRAFT[:1], SETTINGS[0])

    def accepted(rule: str) -> float:
        def one(verdicts: mx.array, draws: mx.array) -> mx.array:
            proposals = draw_tokens(q, draws[:1])
            return verify_proposals(mx.concatenate([p, p]), q, proposals, verdicts, draws[1:], rule).accepted

        return float(mx.vmap(one)(*randomness(SAMPLES, verdicts=1, draws=3, seed=5)).astype(mx.float32).mean())

    expected = float(mx.minimum(p, q).sum().item())
    tolerance = 4 * np.sqrt(0.25 / SAMPLES)
    assert accepted("rejection") == pytest.approx(expected, abs=tolerance)
    assert accepted("block") == pytest.approx(expected, abs=tolerance)
    assert accepted("match") == pytest.approx(float((p * q).sum().item()), abs=tolerance)


def test_block_accepts_no_less_of_a_round_than_rejection() -> None:
    p, q = probabilities(TARGET, SETTINGS[0]), probabilities(DRAFT, SETTINGS[0])

    def length(rule: str) -> float:
        def one(verdicts: mx.array, draws: mx.array) -> mx.array:
            first = draw_tokens(q[0], draws[0])
            drafted = mx.stack([first, second := draw_tokens(q[first], draws[1]), draw_tokens(q[second], draws[2])])
            before = mx.concatenate([mx.array([0], drafted.dtype), drafted])
            return verify_proposals(p[before], q[before[:-1]], drafted, verdicts, draws[3:], rule).accepted

        return float(mx.vmap(one)(*randomness(SAMPLES, verdicts=3, draws=7, seed=6)).astype(mx.float32).mean())

    assert length("block") > length("rejection") + 0.02


def test_equal_distributions_accept_everything() -> None:
    p = probabilities(TARGET, SETTINGS[0])
    for rule in ("rejection", "block"):
        for seed in range(50):
            verdicts, draws = randomness(verdicts=4, draws=9, seed=seed)
            proposals = draw_tokens(p[:4], draws[:4])
            assert verify_proposals(p, p[:4], proposals, verdicts, draws[4:], rule).accepted.item() == 4


def test_a_refusal_that_leaves_nothing_of_p_falls_back_to_p() -> None:
    p = probabilities(TARGET[:1], SETTINGS[0])[0]
    for share in (None, mx.array(0.5)):
        residual = np.array(residual_weights(p, p, share), np.float64)
        np.testing.assert_allclose(residual / residual.sum(), np.array(p), rtol=1e-5)


@pytest.mark.parametrize("rule", SAMPLING)
def test_a_verdict_tells_the_probabilities_of_what_it_is_about(rule: str) -> None:
    p, q = probabilities(TARGET, SETTINGS[0]), probabilities(DRAFT, SETTINGS[0])[:4]
    seen = set()
    for seed in range(40):
        verdicts, draws = randomness(verdicts=4, draws=9, seed=seed)
        proposals = draw_tokens(q, draws[:4])
        found = verify_proposals(p, q, proposals, verdicts, draws[4:], rule)
        accepted, following = int(found.accepted.item()), int(found.following.item())
        for rows, told in ((p, found.p), (q, found.q)):
            chosen = [rows[i, proposals[i]].item() for i in range(4)]
            assert told.tolist() == [*chosen, rows[min(accepted, len(rows) - 1), following].item()]
        seen.add(accepted)
    assert len(seen) > 2


# The law of one round, computed: every proposal that the draft can draw, every verdict, every token that follows.

Law = dict[tuple[int, ...], float]


def below(threshold: float) -> float:
    """P(u < threshold) for a uniform u in float64 that is rounded to float32 and kept below 1."""
    t = np.float32(threshold)
    return 1.0 if t >= 1 else max((float(t) + float(np.nextafter(t, np.float32(-1)))) / 2, 0.0)


def shares(weights: mx.array) -> np.ndarray:
    """Their law under `draw_tokens`, but for what `test_draws` bounds."""
    wide = np.array(weights, np.float64)
    return wide / wide.sum(axis=-1, keepdims=True)


def law_of_a_round(p_table: mx.array, q_table: mx.array, count: int, rule: str) -> Law:
    """The probability of each kept prefix with the token after it, from token 0, by the code's own thresholds."""
    q_shares, law = shares(q_table), defaultdict[tuple[int, ...], float](float)
    for drafted in product(range(VOCABULARY), repeat=count):
        before = [0, *drafted]
        reached = math.prod(q_shares[last, token] for last, token in pairwise(before))
        p, q = p_table[mx.array(before)], q_table[mx.array(before[:-1])]
        rows = mx.arange(count)
        ratios = p[rows, mx.array(drafted)] / q[rows, mx.array(drafted)]
        thresholds, p_taus = (ratios, None) if rule == "rejection" else block_thresholds(p, q, ratios)
        passes = [below(threshold) for threshold in thresholds.tolist()]
        for accepted in range(count + 1):
            if rule == "rejection":
                chance = math.prod(passes[:accepted]) * (1 - passes[accepted] if accepted < count else 1)
            else:
                chance = (passes[accepted - 1] if accepted else 1) * math.prod(1 - h for h in passes[accepted:])
            proposed = q[accepted] if accepted < count else mx.zeros(VOCABULARY)
            weights = residual_weights(p[accepted], proposed, None if p_taus is None else p_taus[accepted])
            for token, share in enumerate(shares(weights)):
                law[*drafted[:accepted], token] += reached * chance * share
    return law


def far_from_the_target(law: Law, p_table: mx.array, length: int) -> float:
    """Total variation between `length` tokens of the target and of a round that the target completes."""
    p_shares = shares(p_table)

    def probability(tokens: tuple[int, ...]) -> float:
        return math.prod(p_shares[last, token] for last, token in pairwise((0, *tokens)))

    distance = 0.0
    for tokens in product(range(VOCABULARY), repeat=length):
        emitted = sum(
            law[tokens[:kept]] * math.prod(p_shares[last, token] for last, token in pairwise(tokens[kept - 1 :]))
            for kept in range(1, length + 1)
        )
        distance += abs(emitted - probability(tokens)) / 2
    return distance


NEAR = TARGET + mx.random.normal((VOCABULARY, VOCABULARY), key=mx.random.key(3)) * 1e-3
TABLES = [(TARGET, DRAFT), (TARGET * 6, DRAFT * 6), (TARGET, NEAR), (TARGET, TARGET), (TARGET, DRAFT * 0)]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("tables", range(len(TABLES)))
@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_the_computed_law_of_a_round_is_the_targets_to_within_2e_6(rule: str, tables: int, count: int) -> None:
    p, q = (mx.softmax(table, axis=-1, precise=True) for table in TABLES[tables])
    law = law_of_a_round(p, q, count, rule)
    assert sum(law.values()) == pytest.approx(1)
    assert far_from_the_target(law, p, count + 1) < 2e-6


def test_the_computed_law_sees_a_draft_of_another_temperature() -> None:
    p, q = (mx.softmax(table, axis=-1, precise=True) for table in TABLES[0])
    law = law_of_a_round(p, q, 2, "rejection")
    assert far_from_the_target(law, mx.softmax(TARGET * 1.0001, axis=-1), 3) > 1e-5


WIDE = [2_048, 151_936, 262_144]


def wide_pair(width: int, likeness: float) -> tuple[mx.array, mx.array, np.ndarray, np.ndarray]:
    """p and q (2, V) as the code has them, and in float64; logits are that alike, and one token of a row is likely."""
    target, draft = (mx.random.normal((2, width), key=mx.random.key(width + i)) * 2 for i in range(2))
    target[:, 7] += 8.0
    logits = target, likeness * target + (1 - likeness) * draft
    exponentials = [np.exp(np.array(table, np.float64)) for table in logits]
    true = [table / table.sum(axis=-1, keepdims=True) for table in exponentials]
    p, q = (sampling_probs(table, SETTINGS[0], width) for table in logits)
    return p, q, true[0], true[1]


@pytest.mark.parametrize("width", WIDE)
@pytest.mark.parametrize("likeness", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_over_a_large_vocabulary_the_computed_law_is_that_of_the_targets_logits(
    rule: str, likeness: float, width: int
) -> None:
    p, q, true, _ = wide_pair(width, likeness)
    ratios = p[0] / q[0]
    if rule == "block":
        ratios = mx.vmap(lambda ratio: block_thresholds(p, q[:1], ratio)[0])(ratios[:, None]).squeeze(-1)
    proposed, thresholds = shares(q[0]), np.minimum(np.array(ratios), np.float32(1))
    accepts = (thresholds.astype(np.float64) + np.nextafter(thresholds, np.float32(-1))) / 2  # `below`, of each token
    accepts[thresholds == 1] = 1
    kept = proposed * accepts
    emitted = kept + (1 - kept.sum()) * shares(residual_weights(p[0], q[0], None))
    assert np.abs(emitted - true[0]).sum() / 2 < 2e-6


@pytest.mark.parametrize("width", WIDE)
@pytest.mark.parametrize("likeness", [0.0, 0.5, 0.99])
def test_over_a_large_vocabulary_the_thresholds_of_block_are_those_of_float64(likeness: float, width: int) -> None:
    """h_1 = R / (R + 1 − p_1) matters only where x_2 is then rejected, which has a probability of R + 1 − p_1."""
    p, q, p_true, q_true = wide_pair(width, likeness)
    for seed in range(20):
        drafted = draw_tokens(q, mx.array(RandomStream(seed).exponentials(2, exponentials_per_draw(width)))).tolist()
        thresholds, _ = block_thresholds(
            mx.concatenate([p, p[:1]]), q, mx.stack([p[i, x] / q[i, x] for i, x in enumerate(drafted)])
        )
        first, second = (p_true[i, x] / q_true[i, x] for i, x in enumerate(drafted))
        left = np.maximum(min(first, 1) * p_true[1] - q_true[1], 0).sum()
        whole = left + 1 - min(first, 1)
        assert abs(thresholds[0].item() - left / whole) * whole < 2e-6
        assert thresholds[1].item() == pytest.approx(min(min(first, 1) * second, 1), abs=2e-6)


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_the_verdicts_are_those_of_the_thresholds(rule: str) -> None:
    p, q = probabilities(TARGET, SETTINGS[0]), probabilities(DRAFT, SETTINGS[0])[:4]
    for seed in range(40):
        verdicts, draws = randomness(verdicts=4, draws=9, seed=seed)
        proposals = draw_tokens(q, draws[:4])
        ratios = p[mx.arange(4), proposals] / q[mx.arange(4), proposals]
        thresholds, p_taus = (ratios, None) if rule == "rejection" else block_thresholds(p, q, ratios)
        passed = [bool(flag) for flag in (verdicts < thresholds).tolist()]
        kept = [*passed, False].index(False) if rule == "rejection" else max(np.flatnonzero([True, *passed]))
        found = verify_proposals(p, q, proposals, verdicts, draws[4:], rule)
        proposed = q[kept] if kept < 4 else mx.zeros(VOCABULARY)
        weights = residual_weights(p[kept], proposed, None if p_taus is None else p_taus[kept])
        assert (found.accepted.item(), found.following.item()) == (kept, draw_tokens(weights, draws[-1]).item())


@pytest.mark.parametrize(
    ("rule", "temperature"), [("greedy", 0.8), ("rejection", 0.0), ("block", 0.0), ("match", 0.0), ("bloc", 0.8)]
)
def test_a_rule_that_does_not_fit_the_temperature_is_a_usage_error(rule: str, temperature: float) -> None:
    with pytest.raises(ConfigError, match=rule):
        rule_for(rule, temperature)


def test_auto_is_greedy_at_zero_and_rejection_above() -> None:
    assert [rule_for("auto", temperature) for temperature in (0.0, 0.1)] == ["greedy", "rejection"]


def running_product(ratios: np.ndarray) -> np.ndarray:
    """p_1 .. p_K of block verification, one after the other."""
    found = [1.0]
    for ratio in ratios.astype(np.float64):
        found.append(min(found[-1] * ratio, 1.0))
    return np.array(found[1:])


@pytest.mark.parametrize("count", [2, 8, 64])
def test_the_factors_of_a_long_block_are_those_of_float64(count: int) -> None:
    rng = np.random.default_rng(5)
    error = of_running_sums = 0.0
    for _ in range(100):
        ratios = np.exp(rng.normal(scale=1.5, size=count)).astype(np.float32)
        ratios = np.sort(ratios)[::-1].copy() if rng.random() < 0.5 else ratios  # sums that grow far, and come back
        p = mx.full((count + 1, 2), 0.5)
        _, factors = block_thresholds(p, p[1:], mx.array(ratios))
        sums = mx.concatenate([mx.zeros(1), mx.cumsum(mx.log(mx.array(ratios)))])
        simple, exact = mx.exp(sums - mx.cummax(sums)), running_product(ratios)
        error = max(error, float(np.abs(np.array(factors[1:], np.float64) - exact).max()))
        of_running_sums = max(of_running_sums, float(np.abs(np.array(simple[1:], np.float64) - exact).max()))
    assert error < 2e-6
    if count == 64:
        assert of_running_sums > 2 * error  # the simpler formula would be noticed
