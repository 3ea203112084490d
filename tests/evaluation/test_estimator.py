"""The estimator against real rounds: enumerated to the last probability, simulated, and walked token for token."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftloop.evaluation.estimator import (
    Acceptance,
    Rule,
    best_k,
    expected_rounds,
    forecast,
    log_probs,
    position_weights,
    realised,
    rounds_moments,
    survival,
    total,
)

FloatArray = npt.NDArray[np.float64]
Rounds = list[tuple[int, int]]

SAMPLED_RULES: tuple[Rule, ...] = ("rejection", "match", "block")
NO_MASS = -np.inf

reproducible = settings(max_examples=40, deadline=None, derandomize=True)
log_probabilities = st.one_of(st.none(), st.floats(-6.0, 0.0), st.sampled_from([0.0, -1e-9, -700.0]))
outputs = st.lists(st.tuples(st.floats(-6.0, 0.0), log_probabilities), min_size=1, max_size=24)


def scored(pairs: Sequence[tuple[float | None, float | None]]) -> tuple[FloatArray, FloatArray]:
    return log_probs([p for p, _ in pairs]), log_probs([q for _, q in pairs])


def walk(accepted: Sequence[bool], k: int) -> Rounds:
    """The rounds of a decoder that is told for each position whether a proposal there would be kept."""
    rounds, start, length = [], 0, len(accepted)
    while start < length:
        drafted = min(k, length - start)
        kept = 0
        while kept < drafted and accepted[start + kept]:
            kept += 1
        rounds.append((drafted, kept))
        start += kept + 1
    return rounds


def counts(acceptance: Acceptance) -> FloatArray:
    return np.array([acceptance.rounds, acceptance.drafted, acceptance.accepted])


# --- a toy pair, its verification written out, and every run of it enumerated -----------------------------------------


class Pair(NamedTuple):
    """Two Markov chains over a small vocabulary: row = the last token, column = the next one."""

    target: list[list[float]]
    draft: list[list[float]]
    end_of_text: int | None

    @property
    def vocabulary(self) -> range:
        return range(len(self.target))

    def score(self, output: Sequence[int]) -> tuple[FloatArray, FloatArray]:
        steps = list(itertools.pairwise((START, *output)))
        with np.errstate(divide="ignore"):
            return (
                np.log(np.array([self.target[last][token] for last, token in steps])),
                np.log(np.array([self.draft[last][token] for last, token in steps])),
            )

    def cut(self, emitted: Sequence[int], left: int) -> tuple[int, ...]:
        kept = tuple(emitted[:left])
        return kept[: kept.index(self.end_of_text) + 1] if self.end_of_text in kept else kept


START = 1


def make_pair(vocabulary: int, end_of_text: int | None, seed: int) -> Pair:
    """Random chains, half alike; above three tokens the draft gives one after every token no mass."""
    rng = np.random.default_rng(seed)
    target, other = rng.dirichlet(np.full(vocabulary, 1.2), size=(2, vocabulary))
    draft = (target + other) / 2
    if vocabulary > 3:
        draft[np.arange(vocabulary), (np.arange(vocabulary) + 2) % vocabulary] = 0.0
    for chain in (target, draft):
        if end_of_text is not None:
            chain[:, end_of_text] *= 0.3
        chain /= chain.sum(axis=1, keepdims=True)
    return Pair(target.tolist(), draft.tolist(), end_of_text)


def normalised(mass: Sequence[float]) -> list[float]:
    whole = sum(mass)
    return [value / whole for value in mass] if whole > 0 else list(mass)


def residual(target: Sequence[float], draft: Sequence[float], scale: float = 1.0) -> list[float]:
    return [max(scale * p - q, 0.0) for p, q in zip(target, draft, strict=True)]


def block_thresholds(pair: Pair, context: Sequence[int]) -> tuple[list[float], list[float]]:
    """p_i and h_i of block verification for the proposals context[1:] (Sun et al., algorithm 2)."""
    k = len(context) - 1
    p = [1.0]
    for last, token in itertools.pairwise(context):
        p.append(min(p[-1] * pair.target[last][token] / pair.draft[last][token], 1.0))
    h = [1.0]
    for i in range(1, k + 1):
        mass = sum(residual(pair.target[context[i]], pair.draft[context[i]], p[i]))
        h.append(p[k] if i == k else mass / (mass + 1.0 - p[i]) if mass > 0 else 0.0)
    return p, h


def verdicts(pair: Pair, rule: Rule, context: Sequence[int]) -> Iterator[tuple[int, float, list[float]]]:
    """(accepted, its probability, distribution of the token then emitted) for the proposals context[1:]."""
    k = len(context) - 1
    if rule == "block":
        p, h = block_thresholds(pair, context)
        beyond = 1.0
        for i in range(k, -1, -1):
            row = pair.target[context[i]]
            yield i, beyond * h[i], row if i == k else normalised(residual(row, pair.draft[context[i]], p[i]))
            beyond *= 1.0 - h[i]
        return
    reached = 1.0
    for i, (last, token) in enumerate(itertools.pairwise(context)):
        p_row, q_row = pair.target[last], pair.draft[last]
        if rule == "rejection":
            keep, refused = min(1.0, p_row[token] / q_row[token]), residual(p_row, q_row)
        else:
            keep, refused = p_row[token], [0.0 if z == token else p_row[z] for z in pair.vocabulary]
        yield i, reached * (1.0 - keep), normalised(refused)
        reached *= keep
    yield k, reached, pair.target[context[k]]


def enumerate_runs(pair: Pair, rule: Rule, k: int, length: int) -> dict[tuple[int, ...], FloatArray]:
    """For every output: its probability, and that times the expected rounds, drafted and accepted tokens given it."""

    @cache
    def runs(last: int, left: int) -> dict[tuple[int, ...], FloatArray]:
        found: dict[tuple[int, ...], FloatArray] = {}
        for proposals in itertools.product(pair.vocabulary, repeat=min(k, left)):
            context = (last, *proposals)
            drawn = float(np.prod([pair.draft[a][b] for a, b in itertools.pairwise(context)]))
            if drawn == 0.0:
                continue
            for accepted, probability, then in verdicts(pair, rule, context):
                for token in pair.vocabulary:
                    share = drawn * probability * then[token]
                    emitted = pair.cut((*proposals[:accepted], token), left)
                    size = len(emitted)
                    ended = size == left or emitted[-1] == pair.end_of_text
                    tails = {(): np.array([1.0, 0.0, 0.0, 0.0])} if ended else runs(emitted[-1], left - size)
                    for tail, sums in tails.items():
                        output = (*emitted, *tail)
                        in_round = np.array([0.0, 1.0, min(len(proposals), len(output)), min(accepted, size)])
                        found[output] = found.get(output, np.zeros(4)) + share * (sums + in_round * sums[0])
        return found

    return {output: sums for output, sums in runs(START, length).items() if sums[0] > 0}


def estimation_errors(pair: Pair, rule: Rule, estimated_with: Rule, k: int, length: int) -> FloatArray:
    """(outputs, 3) estimate given y minus the enumerated truth given y, of rounds, drafted and accepted."""
    return np.array(
        [
            counts(expected_rounds(*pair.score(output), estimated_with, k)) - sums[1:] / sums[0]
            for output, sums in enumerate_runs(pair, rule, k, length).items()
        ]
    )


@pytest.mark.parametrize("end_of_text", [None, 0])
@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("rule", SAMPLED_RULES)
def test_the_estimate_given_each_output_equals_the_full_tree_of_real_runs(
    rule: Rule, k: int, end_of_text: int | None
) -> None:
    pair = make_pair(3, end_of_text, seed=3)
    assert np.abs(estimation_errors(pair, rule, rule, k, length=4)).max() < 1e-12


@pytest.mark.parametrize("rule", SAMPLED_RULES)
def test_the_estimate_is_exact_where_the_draft_has_no_mass_and_k_exceeds_the_output(rule: Rule) -> None:
    pair = make_pair(4, end_of_text=0, seed=5)
    assert np.abs(estimation_errors(pair, rule, rule, k=4, length=3)).max() < 1e-12


@pytest.mark.parametrize("rule", SAMPLED_RULES)
def test_the_enumerated_runs_emit_the_target_distribution(rule: Rule) -> None:
    """The reference itself is lossless: without this the tests above would compare with the wrong decoder."""
    pair = make_pair(3, end_of_text=0, seed=3)
    runs = enumerate_runs(pair, rule, 2, length=4)
    assert sum(sums[0] for sums in runs.values()) == pytest.approx(1.0, abs=1e-12)
    for output, sums in runs.items():
        assert sums[0] == pytest.approx(np.exp(pair.score(output)[0].sum()), abs=1e-12)


@pytest.mark.parametrize(("rule", "wrong"), [(a, b) for a in SAMPLED_RULES for b in SAMPLED_RULES if a != b])
def test_the_full_tree_catches_the_weights_of_another_rule(rule: Rule, wrong: Rule) -> None:
    pair = make_pair(3, end_of_text=0, seed=3)
    assert np.abs(estimation_errors(pair, rule, wrong, 3, length=4)).max() > 1e-3


# --- a decoder that really draws its proposals and verifies them ------------------------------------------------------


def decode(pair: Pair, rule: Rule, k: int, max_tokens: int, rng: random.Random) -> tuple[tuple[int, ...], Rounds]:
    """One output and its rounds as the decoder saw them, proposals past an end-of-text included."""
    output: tuple[int, ...] = ()
    rounds: Rounds = []
    while len(output) < max_tokens and (not output or output[-1] != pair.end_of_text):
        context = [output[-1] if output else START]
        for _ in range(min(k, max_tokens - len(output))):
            context.append(rng.choices(pair.vocabulary, pair.draft[context[-1]])[0])
        verify = {"rejection": verify_rejection, "match": verify_match, "block": verify_block}[rule]
        accepted, then = verify(pair, context, rng)
        rounds.append((len(context) - 1, accepted))
        output += pair.cut((*context[1 : accepted + 1], then), max_tokens - len(output))
    return output, rounds


def verify_rejection(pair: Pair, context: Sequence[int], rng: random.Random) -> tuple[int, int]:
    for i, (last, token) in enumerate(itertools.pairwise(context)):
        p, q = pair.target[last], pair.draft[last]
        if rng.random() >= p[token] / q[token]:
            return i, rng.choices(pair.vocabulary, residual(p, q))[0]
    return len(context) - 1, rng.choices(pair.vocabulary, pair.target[context[-1]])[0]


def verify_match(pair: Pair, context: Sequence[int], rng: random.Random) -> tuple[int, int]:
    own = [rng.choices(pair.vocabulary, pair.target[last])[0] for last in context]
    accepted = next((i for i, token in enumerate(context[1:]) if token != own[i]), len(context) - 1)
    return accepted, own[accepted]


def verify_block(pair: Pair, context: Sequence[int], rng: random.Random) -> tuple[int, int]:
    k = len(context) - 1
    p, h = block_thresholds(pair, context)
    accepted = max(i for i in range(k + 1) if i == 0 or rng.random() < h[i])
    row = pair.target[context[accepted]]
    if accepted < k:
        row = residual(row, pair.draft[context[accepted]], p[accepted])
    return accepted, rng.choices(pair.vocabulary, row)[0]


Run = tuple[tuple[int, ...], Rounds]


@cache
def live_runs(rule: Rule, k: int) -> tuple[Run, ...]:
    pair, rng = make_pair(5, end_of_text=0, seed=11), random.Random(f"{rule} {k}")
    return tuple(decode(pair, rule, k, max_tokens=14, rng=rng) for _ in range(1000))


def standard_errors_apart(rule: Rule, estimated_with: Rule, k: int) -> tuple[FloatArray, Acceptance, Acceptance]:
    """(3,) live minus estimate on the emitted outputs, of rounds, drafted and accepted; and the sums of both."""
    pair = make_pair(5, end_of_text=0, seed=11)
    runs = live_runs(rule, k)
    live = [realised(rounds, len(output)) for output, rounds in runs]
    estimate = [expected_rounds(*pair.score(output), estimated_with, k) for output, _ in runs]
    gaps = np.array([counts(a) - counts(b) for a, b in zip(live, estimate, strict=True)])  # (runs, 3)
    errors = gaps.std(axis=0, ddof=1) / np.sqrt(len(gaps))
    return gaps.mean(axis=0) / errors, total(live), total(estimate)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("rule", SAMPLED_RULES)
def test_live_decoding_agrees_with_the_estimate_on_the_outputs_that_it_emitted(rule: Rule, k: int) -> None:
    apart, live, estimate = standard_errors_apart(rule, rule, k)
    assert np.abs(apart).max() < 3.0
    assert live.tokens == estimate.tokens
    assert live.acceptance_length == pytest.approx(estimate.acceptance_length, rel=0.02)


@pytest.mark.parametrize(("rule", "wrong"), [("rejection", "match"), ("match", "rejection"), ("block", "rejection")])
def test_live_decoding_contradicts_the_weights_of_another_rule(rule: Rule, wrong: Rule) -> None:
    apart, _, _ = standard_errors_apart(rule, wrong, 4)
    assert np.abs(apart).max() > 5.0


def test_the_live_runs_hold_every_kind_of_last_round() -> None:
    """Cut by max_tokens, ended by an accepted end-of-text with proposals behind it, and by a corrected one."""
    runs = live_runs("rejection", 4)
    full = [rounds[-1] for output, rounds in runs if output[-1] != 0]
    ended = [(*rounds[-1], tokens_of_last_round(output, rounds)) for output, rounds in runs if output[-1] == 0]
    assert any(drafted < 4 for drafted, _ in full)
    assert any(accepted >= emitted and drafted > emitted for drafted, accepted, emitted in ended)
    assert any(accepted == emitted - 1 for _, accepted, emitted in ended)


def tokens_of_last_round(output: Sequence[int], rounds: Rounds) -> int:
    return len(output) - sum(accepted + 1 for _, accepted in rounds[:-1])


def test_raw_rounds_of_a_decoder_draft_more_than_the_estimate_counts() -> None:
    """So the rate must come from `realised`: a round before the last one may have drafted past the end-of-text too."""
    _, live, estimate = standard_errors_apart("rejection", "rejection", 4)
    raw = sum(drafted for _, rounds in live_runs("rejection", 4) for drafted, _ in rounds)
    assert raw > 1.1 * live.drafted
    assert live.drafted == pytest.approx(estimate.drafted, rel=0.02)


# --- the renewal recursion against coins ------------------------------------------------------------------------------


@given(pairs=st.lists(st.tuples(st.floats(-4.0, 0.0), log_probabilities), min_size=1, max_size=6), k=st.integers(0, 7))
@reproducible
@pytest.mark.parametrize("rule", ["rejection", "match"])
def test_the_recursion_equals_the_sum_over_all_outcomes_of_every_position(
    rule: Rule, pairs: list[tuple[float, float | None]], k: int
) -> None:
    log_p, log_q = scored(pairs)
    weights = position_weights(log_p, log_q, rule)
    expected = np.zeros(3)
    for coins in itertools.product([False, True], repeat=len(weights)):
        probability = float(np.prod(np.where(coins, weights, 1.0 - weights)))
        expected += probability * counts(realised(walk(coins, k), len(coins)))
    assert counts(expected_rounds(log_p, log_q, rule, k)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_the_recursion_agrees_with_simulated_rounds_of_twelve_tokens(k: int) -> None:
    rng = np.random.default_rng(k)
    log_q = np.log(rng.uniform(0.3, 1.0, size=12))
    coins = rng.random((3000, 12)) < np.exp(log_q)
    samples = np.array([counts(realised(walk(row, k), 12)) for row in coins.tolist()])
    errors = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    estimate = counts(expected_rounds(np.zeros(12), log_q, "match", k))
    assert (np.abs(samples.mean(axis=0) - estimate) < 3.0 * errors).all()


@given(pairs=st.lists(st.tuples(st.floats(-4.0, 0.0), log_probabilities), min_size=1, max_size=6), k=st.integers(0, 7))
@reproducible
@pytest.mark.parametrize("rule", ["rejection", "match"])
def test_the_moments_of_the_rounds_equal_those_over_all_outcomes_of_every_position(
    rule: Rule, pairs: list[tuple[float, float | None]], k: int
) -> None:
    log_p, log_q = scored(pairs)
    weights = position_weights(log_p, log_q, rule)
    first = second = 0.0
    for coins in itertools.product([False, True], repeat=len(weights)):
        probability = float(np.prod(np.where(coins, weights, 1.0 - weights)))
        rounds = len(walk(coins, k))
        first, second = first + probability * rounds, second + probability * rounds**2
    assert rounds_moments(log_p, log_q, rule, k) == pytest.approx((first, second - first**2), abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("rule", SAMPLED_RULES)
def test_live_rounds_scatter_about_their_expectation_by_the_variance(rule: Rule, k: int) -> None:
    """1,000 squares of near-normal gaps: their sum has a relative standard error of about 0.05."""
    pair = make_pair(5, end_of_text=0, seed=11)
    moments = [rounds_moments(*pair.score(output), rule, k) for output, _ in live_runs(rule, k)]
    gaps = [len(rounds) - mean for (_, rounds), (mean, _) in zip(live_runs(rule, k), moments, strict=True)]
    assert sum(gap**2 for gap in gaps) == pytest.approx(sum(variance for _, variance in moments), rel=0.2)


@given(pairs=outputs, k=st.integers(0, 8))
@reproducible
@pytest.mark.parametrize("rule", SAMPLED_RULES)
def test_the_mean_of_the_rounds_is_the_expected_rounds(
    rule: Rule, pairs: list[tuple[float, float | None]], k: int
) -> None:
    log_p, log_q = scored(pairs)
    mean, variance = rounds_moments(log_p, log_q, rule, k)
    assert mean == pytest.approx(expected_rounds(log_p, log_q, rule, k).rounds, rel=1e-12)
    assert variance >= 0.0


@given(agrees=st.lists(st.booleans(), min_size=1, max_size=40), k=st.integers(0, 9))
@reproducible
def test_greedy_rounds_do_not_vary(agrees: list[bool], k: int) -> None:
    log_q = log_probs([0.0 if agree else None for agree in agrees])
    assert rounds_moments(np.zeros(len(agrees)), log_q, "greedy", k) == (len(walk(agrees, k)), 0.0)


@given(agrees=st.lists(st.booleans(), min_size=1, max_size=40), k=st.integers(0, 9))
@reproducible
def test_greedy_equals_the_deterministic_walk_exactly(agrees: list[bool], k: int) -> None:
    log_q = log_probs([0.0 if agree else None for agree in agrees])
    estimate = expected_rounds(np.zeros(len(agrees)), log_q, "greedy", k)
    assert estimate == realised(walk(agrees, k), len(agrees))


# --- what must hold for every output ----------------------------------------------------------------------------------


@given(pairs=outputs, k=st.integers(0, 8))
@reproducible
def test_block_verification_never_takes_more_rounds_than_rejection_nor_that_than_match(
    pairs: list[tuple[float, float | None]], k: int
) -> None:
    """For every y: S is greater for each start, and the rounds to go under the lesser rule fall along the output."""
    log_p, log_q = scored(pairs)
    rounds = [expected_rounds(log_p, log_q, rule, k).rounds for rule in ("block", "rejection", "match")]
    assert rounds[0] <= rounds[1] + 1e-9
    assert rounds[1] <= rounds[2] + 1e-9


@given(pairs=outputs)
@reproducible
@pytest.mark.parametrize("rule", SAMPLED_RULES)
def test_at_one_draft_token_the_weights_alone_decide(rule: Rule, pairs: list[tuple[float, float | None]]) -> None:
    log_p, log_q = scored(pairs)
    weights = position_weights(log_p, log_q, rule)
    np.testing.assert_allclose(survival(log_p, log_q, rule, 1), np.stack([np.ones_like(weights), weights], axis=1))


@given(pairs=outputs, k=st.integers(0, 8))
@reproducible
@pytest.mark.parametrize("rule", SAMPLED_RULES)
def test_every_round_emits_its_accepted_tokens_and_one_more_but_for_a_last_one_that_fits(
    rule: Rule, pairs: list[tuple[float, float | None]], k: int
) -> None:
    estimate = expected_rounds(*scored(pairs), rule, k)
    assert -1e-9 <= estimate.accepted + estimate.rounds - estimate.tokens <= 1.0 + 1e-9
    assert estimate.accepted <= estimate.drafted + 1e-9
    assert 1.0 - 1e-9 <= estimate.acceptance_length <= k + 1 + 1e-9


@given(pairs=outputs, k=st.integers(0, 8))
@reproducible
@pytest.mark.parametrize("rule", SAMPLED_RULES)
def test_survival_starts_at_one_falls_and_is_zero_past_the_end(
    rule: Rule, pairs: list[tuple[float, float | None]], k: int
) -> None:
    surviving = survival(*scored(pairs), rule, k)
    assert surviving.shape == (len(pairs), k + 1)
    assert (surviving[:, 0] == 1.0).all()
    assert (np.diff(surviving, axis=1) <= 1e-15).all()
    past_the_end = np.arange(k + 1) > len(pairs) - np.arange(len(pairs))[:, None]
    assert (surviving[past_the_end] == 0.0).all()


@given(pairs=outputs)
@reproducible
@pytest.mark.parametrize("rule", SAMPLED_RULES)
def test_a_draft_length_above_the_output_counts_no_more_than_one_of_its_size(
    rule: Rule, pairs: list[tuple[float, float | None]]
) -> None:
    log_p, log_q = scored(pairs)
    length = len(pairs)
    longer = expected_rounds(log_p, log_q, rule, length + 5)
    assert counts(longer) == pytest.approx(counts(expected_rounds(log_p, log_q, rule, length)), abs=1e-12)


def test_block_gets_credit_ahead_that_rejection_forgets() -> None:
    """Ratios 2 and 1/2: block keeps both for sure, rejection the second one half of the time."""
    log_p, log_q = np.log([0.25, 0.5]), np.log([0.5, 0.25])
    np.testing.assert_allclose(survival(log_p, log_q, "block", 2)[0], [1.0, 1.0, 1.0])
    np.testing.assert_allclose(survival(log_p, log_q, "rejection", 2)[0], [1.0, 1.0, 0.5])


def test_the_weights_are_those_of_the_formulas() -> None:
    log_p, log_q = np.log([0.8, 0.2]), np.log([0.2, 0.8])
    np.testing.assert_allclose(position_weights(log_p, log_q, "rejection"), [0.25, 1.0])
    np.testing.assert_allclose(position_weights(log_p, log_q, "match"), [0.2, 0.8])
    np.testing.assert_allclose(position_weights(np.zeros(2), log_probs([0.0, None]), "greedy"), [1.0, 0.0])


def test_an_output_of_one_token_is_one_round_that_drafts_one() -> None:
    estimate = expected_rounds(np.log([0.5]), np.log([0.2]), "rejection", 4)
    assert counts(estimate) == pytest.approx([1.0, 1.0, 0.4])


def test_no_draft_tokens_is_plain_decoding() -> None:
    estimate = expected_rounds(np.log([0.5, 0.5]), np.log([0.2, 0.2]), "rejection", 0)
    assert estimate == Acceptance(tokens=2, rounds=2.0, drafted=0.0, accepted=0.0)


@pytest.mark.parametrize("missing", [None, NO_MASS, float("nan")])
def test_a_token_without_mass_in_the_draft_is_never_accepted(missing: float | None) -> None:
    log_q = log_probs([0.0, missing, 0.0])
    for rule in ("greedy", *SAMPLED_RULES):
        np.testing.assert_array_equal(position_weights(np.zeros(3), log_q, rule), [1.0, 0.0, 1.0])
        assert expected_rounds(np.zeros(3), log_q, rule, 3).rounds == 2.0


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_a_token_that_the_rescored_target_gives_no_mass_counts_as_refused(rule: Rule) -> None:
    log_p = log_probs([-1.0, None, -1.0])
    np.testing.assert_array_equal(position_weights(log_p, np.full(3, -1.0), rule), [1.0, 0.0, 1.0])
    assert survival(log_p, np.full(3, -1.0), rule, 3)[0].tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("rule", SAMPLED_RULES)
def test_long_and_extreme_outputs_neither_overflow_nor_warn(rule: Rule) -> None:
    length = 5000
    log_p = np.where(np.arange(length) < length // 2, -700.0, 0.0)
    estimate = expected_rounds(log_p, log_p[::-1], rule, 8)
    assert np.isfinite(counts(estimate)).all()
    assert length / 9 <= estimate.rounds <= length


def test_rounding_above_zero_is_forgiven_and_more_is_refused() -> None:
    assert position_weights(np.zeros(1), np.array([1e-6]), "match").tolist() == [1.0]
    with pytest.raises(ValueError, match="none above 0"):
        position_weights(np.zeros(1), np.array([0.5]), "match")


def test_greedy_refuses_a_draft_that_was_scored_above_temperature_zero() -> None:
    with pytest.raises(ValueError, match="temperature 0"):
        expected_rounds(np.zeros(2), np.log([0.5, 0.9]), "greedy", 2)


@pytest.mark.parametrize(
    ("log_p", "log_q", "k", "message"),
    [
        ([], [], 2, "N >= 1"),
        ([0.0], [0.0, 0.0], 2, "expected the same"),
        ([0.0], [0.0], -1, "0 or more"),
    ],
)
def test_unusable_scores_are_refused(log_p: list[float], log_q: list[float], k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected_rounds(np.array(log_p), np.array(log_q), "rejection", k)


# --- counts and ratios of sums ----------------------------------------------------------------------------------------


def test_a_total_gives_ratios_of_sums_and_not_means_of_ratios() -> None:
    whole = total([Acceptance(10, 2.0, 8.0, 8.0, 9.0), Acceptance(2, 2.0, 4.0, 0.0, 0.0)])
    assert whole == Acceptance(12, 4.0, 12.0, 8.0, 9.0)
    assert (whole.acceptance_length, whole.acceptance_rate, whole.acceptance_per_position) == (3.0, 8 / 12, 0.75)


def test_one_output_without_full_distributions_makes_the_acceptance_per_position_unknown() -> None:
    assert (Acceptance(1, 1.0, 1.0, 1.0, 0.5) + Acceptance(1, 1.0, 1.0, 1.0)).acceptance_per_position is None


def test_the_acceptance_per_position_is_the_mean_and_does_not_depend_on_k() -> None:
    for k in (1, 4):
        estimate = expected_rounds(np.zeros(3), np.zeros(3), "rejection", k, np.array([0.2, 0.4, 0.9]))
        assert estimate.acceptance_per_position == pytest.approx(0.5)


@pytest.mark.parametrize("acceptance", [[0.5], [0.5, 1.5], [0.5, float("nan")]])
def test_an_acceptance_per_position_that_is_no_probability_a_token_is_refused(acceptance: list[float]) -> None:
    with pytest.raises(ValueError, match="position_acceptance"):
        expected_rounds(np.zeros(2), np.zeros(2), "rejection", 2, np.array(acceptance))


def test_nothing_is_divided_by_zero() -> None:
    nothing = Acceptance(0, 0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="no output"):
        total([])
    for rate in ("acceptance_length", "acceptance_rate", "acceptance_per_position"):
        with pytest.raises(ValueError, match="without a"):
            getattr(nothing, rate)


# --- live accounting --------------------------------------------------------------------------------------------------


def test_proposals_past_the_end_of_text_count_as_nothing() -> None:
    """Round 2 starts at 3 of 5 tokens: of its four proposals two lie within, whatever was accepted behind them."""
    for last_round in [(4, 4), (4, 2), (2, 2)]:
        assert realised([(4, 2), last_round], tokens=5) == Acceptance(5, 2.0, 6.0, 4.0)


def test_a_round_before_the_last_is_cut_at_the_end_of_text_too() -> None:
    """Both rounds draft four; two tokens are left to the first of them and one to the second."""
    assert realised([(4, 0), (4, 1)], tokens=2) == Acceptance(2, 2.0, 3.0, 1.0)


def test_a_correction_that_ends_the_output_counts_the_refused_proposal_as_drafted() -> None:
    assert realised([(4, 2), (4, 1)], tokens=5) == Acceptance(5, 2.0, 6.0, 3.0)


@pytest.mark.parametrize(
    ("rounds", "tokens", "message"),
    [
        ([(4, 5)], 6, "accepted 5 of 4"),
        ([(4, 2), (4, 0)], 3, "starts after the last"),
        ([(4, 2)], 5, "emit 3 tokens"),
        ([], 0, "above 0"),
    ],
)
def test_rounds_that_cannot_have_emitted_the_output_are_refused(rounds: Rounds, tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        realised(rounds, tokens)


# --- forecast ---------------------------------------------------------------------------------------------------------


def test_the_forecast_is_tokens_a_round_times_plain_time_over_the_time_of_a_round() -> None:
    assert forecast(3.0, t_draft=0.1, t_plain=1.0, t_verify=1.1, num_draft_tokens=4) == pytest.approx(2.0)
    assert forecast(1.0, t_draft=0.1, t_plain=1.0, t_verify=9.9, num_draft_tokens=0) == 1.0


def test_the_best_draft_length_has_the_greatest_forecast() -> None:
    lengths, times = {1: 1.6, 2: 2.0, 4: 2.2}, {1: 1.0, 2: 1.0, 4: 1.0}
    assert best_k(lengths, t_draft=0.1, t_plain=1.0, t_verify=times) == 2


@pytest.mark.parametrize("t_draft", [0.7, 0.5])
def test_the_best_draft_length_is_zero_where_no_speculation_pays(t_draft: float) -> None:
    """At 0.5 one draft token breaks even exactly, and that is no reason to speculate."""
    assert best_k({0: 1.0, 1: 1.5, 4: 2.0}, t_draft, t_plain=1.0, t_verify={1: 1.0, 4: 1.2}) == 0


def test_a_forecast_from_impossible_measurements_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 to K"):
        forecast(4.0, 0.1, 1.0, 1.0, 2)
    with pytest.raises(ValueError, match="positive seconds"):
        forecast(2.0, 0.1, 0.0, 1.0, 2)
    with pytest.raises(ValueError, match=r"K = \[4\]"):
        best_k({1: 1.5, 4: 2.0}, 0.1, 1.0, {1: 1.0})


@pytest.mark.slow
def test_on_outputs_that_end_after_so_many_rounds_of_one_draft_it_looks_better_than_its_equal() -> None:
    """Why nothing is measured on what was cancelled: a lucky draft got further until then. At a length it is fair."""
    chance, k, outputs = np.random.default_rng(1), 4, 4_000
    extra = {"cancelled": 0.0, "cut at a length": 0.0}
    for _ in range(outputs):
        weights = chance.uniform(0.2, 1.0, (2, 30))  # of two drafts that are interchangeable
        rounds = walk((chance.random(30) < weights[0]).tolist(), k)
        reached = sum(accepted + 1 for _, accepted in rounds[:5])
        for why, length in (("cancelled", reached), ("cut at a length", 12)):
            own, other = (
                expected_rounds(np.zeros(length), np.log(one[:length]), "rejection", k).rounds for one in weights
            )
            extra[why] += (own - other) / outputs  # the standard error is 0.014
    assert extra["cancelled"] < -0.04
    assert abs(extra["cut at a length"]) < 0.04
