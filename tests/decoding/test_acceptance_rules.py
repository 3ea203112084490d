"""Verification emits the target's distribution, whatever the draft proposes; and the check that says so can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from chance import BROKEN, FITS, p_value
from tiny import sampler

from draftloop.config import SAMPLING
from draftloop.decoding import acceptance_rules as rules
from draftloop.decoding.acceptance_rules import Verification, draw_tokens, rule_for, verify_proposals
from draftloop.decoding.sampling_filters import sampling_log_probs
from draftloop.errors import ConfigError

VOCABULARY, SAMPLES = 5, 30_000
# Two Markov chains: the next id depends on the last one only, so every probability can be tabulated.
TARGET = mx.random.normal((VOCABULARY, VOCABULARY), key=mx.random.key(1)) * 1.5
DRAFT = mx.random.normal((VOCABULARY, VOCABULARY), key=mx.random.key(2)) * 1.5

Verify = Callable[[mx.array, mx.array, mx.array, mx.array, str], Verification]


def uniforms(*shape: int, seed: int = 7) -> mx.array:
    """As the decoder draws them: multiples of 2**-23 in [0, 1)."""
    return mx.floor(mx.random.uniform(shape=shape, key=mx.random.key(seed)) * 2**23) / 2**23


def probabilities(table: mx.array, settings: object) -> mx.array:
    return mx.exp(sampling_log_probs(table, settings, VOCABULARY))


def first_two_tokens(settings: object, count: int, rule: str, verification: Verify) -> np.ndarray:
    """SAMPLES x 2 ids: one round after id 0, completed by the target where the round emitted one token only."""
    p_table, q_table = probabilities(TARGET, settings), probabilities(DRAFT, settings)

    def one(drawn: mx.array) -> mx.array:
        last, proposals = mx.array(0), []
        for i in range(count):
            last = draw_tokens(q_table[last], drawn[i])
            proposals.append(last)
        drafted = mx.stack(proposals)
        before = mx.concatenate([mx.array([0], drafted.dtype), drafted])
        verdict = verification(p_table[before], q_table[before[:-1]], drafted, drawn[count : 2 * count + 1], rule)
        accepted, following = verdict.accepted, verdict.following
        first = mx.where(accepted > 0, drafted[0], following)
        fresh = draw_tokens(p_table[first], drawn[-1])
        second = drafted[1] if count > 1 else following
        second = mx.where(accepted > 1, second, mx.where(accepted == 1, following, fresh))
        return mx.stack([first, second])

    return np.array(mx.vmap(one)(uniforms(SAMPLES, 2 * count + 2)))


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


def resample_from_p(p: mx.array, q: mx.array, proposals: mx.array, drawn: mx.array, rule: str) -> Verification:
    """The classic mistake: after a refusal it samples p again, instead of what p has more of than q."""
    verdict = verify_proposals(p, q, proposals, drawn, rule)
    return replace(verdict, following=draw_tokens(p[verdict.accepted], drawn[-1]))


def accept_by_the_wrong_ratio(
    p: mx.array, q: mx.array, proposals: mx.array, drawn: mx.array, rule: str
) -> Verification:
    """Another one: q was not the distribution that was sampled (here: at another temperature)."""
    return verify_proposals(p, probabilities(mx.log(q), sampler(0.5)), proposals, drawn, rule)


def accept_each_by_itself(p: mx.array, q: mx.array, proposals: mx.array, drawn: mx.array, rule: str) -> Verification:
    """A third: the residual of `block` with the whole of p after every accepted prefix, as `rejection` has it."""
    verdict = verify_proposals(p, q, proposals, drawn, rule)
    count = q.shape[0]
    before = q[mx.minimum(verdict.accepted, count - 1)] * (verdict.accepted < count)
    return replace(verdict, following=draw_tokens(mx.maximum(p[verdict.accepted] - before, 1e-30), drawn[-1]))


@pytest.mark.parametrize("rule", ["rejection", "block"])
@pytest.mark.parametrize("broken", [resample_from_p, accept_by_the_wrong_ratio])
def test_the_same_check_catches_a_broken_verification(broken: Verify, rule: str) -> None:
    assert p_of(first_two_tokens(SETTINGS[0], 2, rule, broken), SETTINGS[0]) < BROKEN


def test_the_same_check_catches_a_block_whose_residual_forgets_what_was_kept() -> None:
    assert p_of(first_two_tokens(SETTINGS[0], 4, "block", accept_each_by_itself), SETTINGS[0]) < BROKEN


def test_rejection_and_block_accept_one_as_often_as_min_p_q_says_and_match_as_p_times_q() -> None:
    p, q = probabilities(TARGET[:1], SETTINGS[0]), probabilities(DRAFT[:1], SETTINGS[0])

    def accepted(rule: str) -> float:
        def one(drawn: mx.array) -> mx.array:
            return verify_proposals(mx.concatenate([p, p]), q, draw_tokens(q, drawn[:1]), drawn[1:], rule).accepted

        return float(mx.vmap(one)(uniforms(SAMPLES, 3, seed=5)).astype(mx.float32).mean())

    expected = float(mx.minimum(p, q).sum().item())
    tolerance = 4 * np.sqrt(0.25 / SAMPLES)
    assert accepted("rejection") == pytest.approx(expected, abs=tolerance)
    assert accepted("block") == pytest.approx(expected, abs=tolerance)
    assert accepted("match") == pytest.approx(float((p * q).sum().item()), abs=tolerance)


def test_block_accepts_no_less_of_a_round_than_rejection() -> None:
    p, q = probabilities(TARGET, SETTINGS[0]), probabilities(DRAFT, SETTINGS[0])

    def length(rule: str) -> float:
        def one(drawn: mx.array) -> mx.array:
            first = draw_tokens(q[0], drawn[0])
            drafted = mx.stack([first, second := draw_tokens(q[first], drawn[1]), draw_tokens(q[second], drawn[2])])
            before = mx.concatenate([mx.array([0], drafted.dtype), drafted])
            return verify_proposals(p[before], q[before[:-1]], drafted, drawn[3:], rule).accepted

        return float(mx.vmap(one)(uniforms(SAMPLES, 7, seed=6)).astype(mx.float32).mean())

    assert length("block") > length("rejection") + 0.02


def test_equal_distributions_accept_everything() -> None:
    p = probabilities(TARGET, SETTINGS[0])
    for rule in ("rejection", "block"):
        for seed in range(50):
            drawn = uniforms(9, seed=seed)
            assert verify_proposals(p, p[:4], draw_tokens(p[:4], drawn[:4]), drawn[4:], rule).accepted.item() == 4


def test_a_refusal_that_leaves_nothing_of_p_falls_back_to_p() -> None:
    p = probabilities(TARGET[:1], SETTINGS[0])[0]
    for share in (None, mx.array(0.5)):
        residual = np.array(rules._residual(p, p, share), np.float64)
        np.testing.assert_allclose(residual / residual.sum(), np.array(p), rtol=1e-5)


@pytest.mark.parametrize("rule", SAMPLING)
def test_a_verdict_tells_the_probabilities_of_what_it_is_about(rule: str) -> None:
    p, q = probabilities(TARGET, SETTINGS[0]), probabilities(DRAFT, SETTINGS[0])[:4]
    seen = set()
    for seed in range(40):
        drawn = uniforms(9, seed=seed)
        proposals = draw_tokens(q, drawn[:4])
        found = verify_proposals(p, q, proposals, drawn[4:], rule)
        accepted, following = int(found.accepted.item()), int(found.following.item())
        for rows, told in ((p, found.p), (q, found.q)):
            chosen = [rows[i, proposals[i]].item() for i in range(4)]
            assert told.tolist() == [*chosen, rows[min(accepted, len(rows) - 1), following].item()]
        seen.add(accepted)
    assert len(seen) > 2


def test_a_draw_follows_its_weights_and_never_takes_an_id_without_weight() -> None:
    weights = mx.array([0.0, 3.0, 0.0, 1.0, 0.0])
    found = np.array(draw_tokens(mx.broadcast_to(weights, (SAMPLES, 5)), uniforms(SAMPLES)))
    counts = np.bincount(found, minlength=5)
    assert p_value(counts, [0, 3, 0, 1, 0]) > FITS
    ends = mx.array([0.0, 1 - 2**-23])
    assert draw_tokens(mx.broadcast_to(weights, (2, 5)), ends).tolist() == [1, 3]
    assert draw_tokens(mx.broadcast_to(weights * 1e-30, (2, 5)), ends).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("rule", "temperature"), [("greedy", 0.8), ("rejection", 0.0), ("block", 0.0), ("match", 0.0), ("bloc", 0.8)]
)
def test_a_rule_that_does_not_fit_the_temperature_is_a_usage_error(rule: str, temperature: float) -> None:
    with pytest.raises(ConfigError, match=rule):
        rule_for(rule, temperature)


def test_auto_is_greedy_at_zero_and_rejection_above() -> None:
    assert [rule_for("auto", temperature) for temperature in (0.0, 0.1)] == ["greedy", "rejection"]
