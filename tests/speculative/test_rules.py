"""Verification emits the target's distribution, whatever the draft proposes; and the check that says so can fail."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from scipy.stats import chisquare
from tiny import sampler

from draftloop.errors import ConfigError
from draftloop.speculative import rules
from draftloop.speculative.rules import draw, rule_for, verify
from draftloop.speculative.transforms import sampling_log_probs

VOCABULARY, SAMPLES = 5, 30_000
# Two Markov chains: the next id depends on the last one only, so every probability can be tabulated.
TARGET = mx.random.normal((VOCABULARY, VOCABULARY), key=mx.random.key(1)) * 1.5
DRAFT = mx.random.normal((VOCABULARY, VOCABULARY), key=mx.random.key(2)) * 1.5

Verify = Callable[[mx.array, mx.array, mx.array, mx.array, str], tuple[mx.array, mx.array]]


def first_two_tokens(settings: object, count: int, rule: str, verification: Verify) -> np.ndarray:
    """SAMPLES x 2 ids: one round after id 0, completed by the target where the round emitted one token only."""
    p_table = sampling_log_probs(TARGET, settings, VOCABULARY)
    q_table = sampling_log_probs(DRAFT, settings, VOCABULARY)

    def one(key: mx.array) -> mx.array:
        keys = mx.random.split(key, count + 2)
        last, proposals = mx.array(0), []
        for i in range(count):
            last = draw(q_table[last], keys[i], rule)
            proposals.append(last)
        drafted = mx.stack(proposals)
        before = mx.concatenate([mx.array([0], drafted.dtype), drafted])
        accepted, following = verification(p_table[before], q_table[before[:-1]], drafted, keys[count], rule)
        first = mx.where(accepted > 0, drafted[0], following)
        fresh = draw(p_table[first], keys[count + 1], rule)
        second = drafted[1] if count > 1 else following
        second = mx.where(accepted > 1, second, mx.where(accepted == 1, following, fresh))
        return mx.stack([first, second])

    return np.array(mx.vmap(one)(mx.random.split(mx.random.key(7), SAMPLES)))


def p_value(tokens: np.ndarray, settings: object) -> float:
    """Of the hypothesis that the pairs of ids come from the target's chain, started at id 0."""
    table = np.exp(np.array(sampling_log_probs(TARGET, settings, VOCABULARY), dtype=np.float64))
    expected = (table[0][:, None] * table).reshape(-1)
    observed = np.bincount(tokens[:, 0] * VOCABULARY + tokens[:, 1], minlength=VOCABULARY**2)
    possible = expected > 0
    assert observed[~possible].sum() == 0, "an id without mass was emitted"
    return float(chisquare(observed[possible], expected[possible] / expected[possible].sum() * SAMPLES).pvalue)


SETTINGS = [sampler(1.0), sampler(0.6), sampler(0.9, top_p=0.8), sampler(1.2, top_k=3), sampler(0.8, min_p=0.1)]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
@pytest.mark.parametrize("rule", ["rejection", "match"])
def test_what_is_emitted_has_the_targets_distribution(rule: str, settings: object, count: int) -> None:
    assert p_value(first_two_tokens(settings, count, rule, verify), settings) > 1e-4


def resample_from_p(log_p: mx.array, log_q: mx.array, proposals: mx.array, key: mx.array, rule: str) -> tuple:
    """The classic mistake: after a refusal it samples p again, instead of what p has more of than q."""
    accepted, _ = verify(log_p, log_q, proposals, key, rule)
    return accepted, mx.random.categorical(log_p[accepted], key=mx.random.split(key)[1])


def accept_by_the_wrong_ratio(log_p: mx.array, log_q: mx.array, proposals: mx.array, key: mx.array, rule: str) -> tuple:
    """Another one: q was not the distribution that was sampled (here: at another temperature)."""
    return verify(log_p, sampling_log_probs(log_q, sampler(0.5), VOCABULARY), proposals, key, rule)


@pytest.mark.parametrize("broken", [resample_from_p, accept_by_the_wrong_ratio])
def test_the_same_check_catches_a_broken_verification(broken: Verify) -> None:
    assert p_value(first_two_tokens(SETTINGS[0], 2, "rejection", broken), SETTINGS[0]) < 1e-6


def test_rejection_accepts_as_often_as_min_p_q_says_and_match_as_p_times_q() -> None:
    log_p, log_q = (sampling_log_probs(table[:1], SETTINGS[0], VOCABULARY) for table in (TARGET, DRAFT))

    def accepted(rule: str) -> float:
        def one(key: mx.array) -> mx.array:
            keys = mx.random.split(key)
            proposal = draw(log_q, keys[0], rule)
            return verify(mx.concatenate([log_p, log_p]), log_q, proposal, keys[1], rule)[0]

        return float(mx.vmap(one)(mx.random.split(mx.random.key(5), SAMPLES)).astype(mx.float32).mean())

    p, q = np.exp(np.array(log_p[0])), np.exp(np.array(log_q[0]))
    tolerance = 4 * np.sqrt(0.25 / SAMPLES)
    assert accepted("rejection") == pytest.approx(np.minimum(p, q).sum(), abs=tolerance)
    assert accepted("match") == pytest.approx((p * q).sum(), abs=tolerance)


def test_equal_distributions_accept_everything() -> None:
    log_p = sampling_log_probs(TARGET, SETTINGS[0], VOCABULARY)
    for seed in range(50):
        keys = mx.random.split(mx.random.key(seed))
        proposals = draw(log_p[:4], keys[0], "rejection")
        assert verify(log_p, log_p[:4], proposals, keys[1], "rejection")[0].item() == 4


def test_a_refusal_that_leaves_nothing_of_p_falls_back_to_p() -> None:
    log_p = sampling_log_probs(TARGET[:2], SETTINGS[0], VOCABULARY)
    residual = rules._residual(log_p, log_p[:1], mx.array(0))
    np.testing.assert_allclose(np.array(residual), np.array(log_p[0]), atol=1e-6)


def test_greedy_follows_the_targets_argmax_and_stops_at_the_first_difference() -> None:
    one_hot = mx.where(mx.eye(4) > 0, 0.0, -mx.inf)
    log_p = one_hot[mx.array([2, 1, 3])]
    accepted, following = verify(log_p, one_hot[mx.array([2, 0])], mx.array([2, 0]), mx.random.key(0), "greedy")
    assert (accepted.item(), following.item()) == (1, 1)


@pytest.mark.parametrize(("rule", "temperature"), [("greedy", 0.8), ("rejection", 0.0), ("match", 0.0), ("bloc", 0.8)])
def test_a_rule_that_does_not_fit_the_temperature_is_a_usage_error(rule: str, temperature: float) -> None:
    with pytest.raises(ConfigError, match=rule):
        rule_for(rule, temperature)


def test_auto_is_greedy_at_zero_and_rejection_above() -> None:
    assert [rule_for("auto", temperature) for temperature in (0.0, 0.1)] == ["greedy", "rejection"]
