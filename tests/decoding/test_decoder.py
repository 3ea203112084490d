"""The decoder is lossless, its caches hold exactly what was kept, and a round says all that happened in it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from chance import FITS, p_value
from mlx_lm.generate import generate_step
from near_ties import parts_at_a_near_tie
from tiny import sampler, tiny_pair

from draftloop.caches import new_cache, rewinding_of
from draftloop.decoding.decoder import Decoding, KnownPrefix, Round, Settings, count_rounds
from draftloop.decoding.sampling_filters import sampling_log_probs
from draftloop.errors import ConfigError, PromptError
from draftloop.models.pair import Pair

PROMPT = [3, 1, 4, 1, 5]
MODES = [("greedy", 0.0), ("rejection", 0.9), ("block", 0.9), ("match", 0.9)]


def settings(
    rule: str = "rejection", temperature: float = 0.9, count: int = 4, length: int = 24, seed: int = 0
) -> Settings:
    return Settings(sampler(temperature, seed=seed), rule, count, length)


def cache_offsets(decoding: Decoding) -> tuple[int, int]:
    """Tokens in the target's and in the draft's cache."""
    return decoding._target.layers[0].offset, decoding._draft.layers[0].offset


def tokens_of(rounds: list[Round]) -> list[int]:
    return [token for found in rounds for token in found.tokens]


def plain_greedy(pair: Pair, prompt: list[int], length: int) -> list[int]:
    """What mlx-lm generates with the target alone, cut after a stop token."""
    found = []
    for token, _ in generate_step(mx.array(prompt), pair.target, max_tokens=length):
        found.append(int(token))
        if token in pair.stop_tokens:
            break
    return found


# -- losslessness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 4, 7])
@pytest.mark.parametrize("likeness", [0.0, 0.9, 1.0])
def test_greedy_output_is_the_targets_own_token_for_token(count: int, likeness: float) -> None:
    pair, near_ties = tiny_pair(likeness=likeness), 0
    for start in range(4):
        prompt = [start, *PROMPT]
        rounds = list(Decoding(pair, prompt, settings("greedy", 0.0, count)))
        plain = plain_greedy(pair, prompt, 24)
        near_ties += parts_at_a_near_tie(pair.target, prompt, tokens_of(rounds), plain)
    assert near_ties <= 1


def test_without_proposals_the_draft_is_never_asked() -> None:
    pair, asked = tiny_pair(), []

    class Watched:
        layers = pair.draft.layers

        def __call__(self, ids: mx.array, cache: object = None) -> mx.array:
            asked.append(ids.size)
            return pair.draft(ids, cache=cache)

    watched = replace(pair, draft=Watched())
    rounds = list(Decoding(watched, PROMPT, settings(count=0)))
    assert (len(rounds), asked) == (24, [])
    assert rewinding_of(watched.draft).way == "trim"  # which is tried once
    asked.clear()
    assert next(iter(Decoding(watched, PROMPT * 20, settings(count=2)))).proposals
    assert asked == [99, 1, 1]  # a long prompt without its logits, then each proposal's


def test_greedy_output_ends_at_the_targets_stop_token() -> None:
    unlimited = tiny_pair(likeness=0.9)
    stop = plain_greedy(unlimited, PROMPT, 24)[9]
    pair = replace(unlimited, stop_tokens=frozenset({stop}))
    for count in (1, 3, 8):
        decoding = Decoding(pair, PROMPT, settings("greedy", 0.0, count))
        assert tokens_of(list(decoding)) == plain_greedy(pair, PROMPT, 24)
        assert decoding.finish == "stop"


def test_in_half_precision_a_first_difference_lies_at_a_near_tie() -> None:
    bound, pair, near_ties = 0.05, tiny_pair(likeness=0.9), 0
    for model in (pair.target, pair.draft):
        model.set_dtype(mx.float16)
    for start in range(8):
        prompt = [start, *PROMPT]
        ours = tokens_of(list(Decoding(pair, prompt, settings("greedy", 0.0))))
        plain = plain_greedy(pair, prompt, 24)
        near_ties += parts_at_a_near_tie(pair.target, prompt, ours, plain, bound)
    assert near_ties <= 2  # counted: they are rare, not the rule


def joint_log_probs(pair: Pair, prompt: list[int], length: int, sampling: object) -> np.ndarray:
    """log-probability of every sequence of `length` ids after `prompt`, by the target alone; (V,) * length."""
    table = np.zeros((1,))
    prefixes: list[list[int]] = [[]]
    for _ in range(length):
        logits = pair.target(mx.array([prompt + prefix for prefix in prefixes]))[:, -1]
        rows = np.array(sampling_log_probs(logits, sampling, pair.width), dtype=np.float64)
        table = (table.reshape(-1, 1) + rows).reshape(-1)
        prefixes = [[*prefix, i] for prefix in prefixes for i in range(pair.width)]
    return table


@pytest.mark.parametrize(
    ("rule", "count", "top_p"),
    [("rejection", 1, 1.0), ("rejection", 3, 0.9), ("block", 3, 1.0), ("block", 2, 0.9), ("match", 2, 1.0)],
)
@pytest.mark.some(3)
def test_sampled_output_has_the_targets_distribution(rule: str, count: int, top_p: float) -> None:
    pair, length, samples, sampling = tiny_pair(4, likeness=0.3), 3, 400, sampler(1.1, top_p=top_p)
    expected = np.exp(joint_log_probs(pair, [1, 2], length, sampling))
    observed = np.zeros(4**length)
    for seed in range(samples):
        found = list(Decoding(pair, [1, 2], Settings(replace(sampling, seed=seed), rule, count, length)))
        observed[int("".join(map(str, tokens_of(found))), 4)] += 1
    assert p_value(observed, expected) > FITS


# -- what a round says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "temperature"), MODES)
@pytest.mark.parametrize("count", [1, 3, 6])
@pytest.mark.parametrize("likeness", [0.0, 0.8, 1.0])
def test_the_caches_hold_every_kept_token_but_the_last_after_every_round(
    rule: str, temperature: float, count: int, likeness: float
) -> None:
    pair = replace(tiny_pair(likeness=likeness), stop_tokens=frozenset({7}))
    decoding = Decoding(pair, PROMPT, settings(rule, temperature, count, length=17))
    for found in decoding:
        kept = len(PROMPT) + decoding.emitted
        behind = 2 if found.bonus_log_p is not None else 1
        assert cache_offsets(decoding) == (kept - 1, kept - behind)
    assert decoding.finish == ("stop" if found.tokens[-1] == 7 else "length")


def test_a_twin_of_the_target_has_every_round_fully_accepted_and_every_kind_of_end_occurs() -> None:
    pair = tiny_pair(likeness=1.0)
    rounds = list(Decoding(pair, PROMPT, settings("rejection", count=4, length=23)))
    assert [found.accepted for found in rounds] == [4, 4, 4, 4, 3]
    assert [len(found.tokens) for found in rounds] == [5, 5, 5, 5, 3]
    assert rounds[-1].bonus_log_p is None  # no room for a bonus token
    assert count_rounds(rounds, 23)[-1] == (3, 3)


@pytest.mark.parametrize(("rule", "temperature"), MODES)
def test_log_probabilities_are_those_of_a_teacher_forced_pass(rule: str, temperature: float) -> None:
    pair = tiny_pair(likeness=0.97)
    decoding = Decoding(pair, PROMPT, settings(rule, temperature, count=2, length=60))
    rounds = list(decoding)
    decoding.complete_bonus_draws()
    output = tokens_of(rounds)
    ids = mx.array([PROMPT + output[:-1]])
    log_p, log_q = (
        np.array(sampling_log_probs(model(ids)[0, len(PROMPT) - 1 :], sampler(temperature), pair.width))
        for model in (pair.target, pair.draft)
    )
    bonus_positions = 0
    for found in rounds:
        for offset, draw in enumerate(found.verified):
            at = found.start + offset
            assert draw.token == output[at]
            assert (draw.draft_token == draw.token) == (offset < found.accepted)
            measured = [draw.draft_log_p, draw.draft_log_q, draw.token_log_p, draw.token_log_q]
            expected = [rows[at, i] for i in (draw.draft_token, draw.token) for rows in (log_p, log_q)]
            np.testing.assert_allclose(measured, expected, atol=1e-4)
        if found.bonus_log_p is not None:
            at = found.start + len(found.tokens) - 1
            assert found.bonus_log_p == pytest.approx(log_p[at, output[at]], abs=1e-4)
            assert decoding.bonus_draws[at].token_log_q == pytest.approx(log_q[at, output[at]], abs=1e-4)
            assert log_q[at, decoding.bonus_draws[at].draft_token] > -np.inf
            bonus_positions += 1
    assert bonus_positions == len(decoding.bonus_draws) > 0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_proposals_past_the_end_of_the_text_count_as_nothing(count: int) -> None:
    for stop, likeness in itertools.product(range(8), (0.5, 1.0)):
        pair = replace(tiny_pair(likeness=likeness), stop_tokens=frozenset({stop, stop + 8, stop + 16}))
        rounds = list(Decoding(pair, PROMPT, settings("rejection", count=count, length=14)))
        length, start = len(tokens_of(rounds)), 0
        for drafted, accepted in count_rounds(rounds, length):
            assert drafted == min(count, length - start)
            assert 0 <= accepted <= drafted
            start += accepted + 1
        assert start - length in (0, 1)


def test_the_same_seed_gives_the_same_rounds_and_another_seed_others() -> None:
    pair = tiny_pair(likeness=0.5)
    first, again, other = (list(Decoding(pair, PROMPT, settings(seed=seed))) for seed in (1, 1, 2))
    assert first == again
    assert tokens_of(first) != tokens_of(other)


def test_a_prefill_in_small_steps_changes_nothing() -> None:
    pair, prompt = tiny_pair(likeness=0.5), [i % 60 for i in range(23)]
    whole = list(Decoding(pair, prompt, settings("greedy", 0.0)))
    stepped = list(Decoding(pair, prompt, replace(settings("greedy", 0.0), prefill_step_size=5)))
    assert tokens_of(whole) == tokens_of(stepped)


def test_the_global_random_state_is_neither_used_nor_changed() -> None:
    pair = tiny_pair(likeness=0.5)
    mx.random.seed(11)
    before = mx.random.state[0].tolist()
    first = list(Decoding(pair, PROMPT, settings()))
    assert mx.random.state[0].tolist() == before
    mx.random.seed(12)
    assert list(Decoding(pair, PROMPT, settings())) == first


# -- a draft length that changes from round to round -------------------------------------------------------------------


class Script:
    """Draft lengths as written, over and over; 0 makes so many plain steps."""

    def __init__(self, lengths: Sequence[int], plain: int = 3) -> None:
        self._lengths, self._plain = itertools.cycle(lengths), plain
        self.seen: list[tuple[int, int]] = []

    def choose(self) -> int:
        return next(self._lengths)

    def plain_steps(self) -> int:
        return self._plain

    def observe(self, drafted: int, accepted: int) -> None:
        self.seen.append((drafted, accepted))


SCRIPTS = [[0], [2, 0], [0, 1, 4], [4, 4, 0, 0, 1]]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("likeness", [0.0, 0.9, 1.0])
def test_plain_steps_between_rounds_change_nothing_in_a_greedy_text(script: list[int], likeness: float) -> None:
    pair = tiny_pair(likeness=likeness)
    for stop in (None, 9):
        pair = replace(pair, stop_tokens=frozenset({plain_greedy(pair, PROMPT, 24)[stop]} if stop else ()))
        policy = Script(script)
        decoding = Decoding(pair, PROMPT, settings("greedy", 0.0, 4), policy)
        rounds = list(decoding)
        assert tokens_of(rounds) == plain_greedy(pair, PROMPT, 24)
        assert decoding.finish == ("length" if stop is None else "stop")
        whole = [(len(found.proposals), found.accepted) for found in rounds]
        assert policy.seen[:-1] == whole[:-1]
        # Of the last round nothing is said of what was proposed past the end.
        assert policy.seen[-1] == (min(whole[-1][0], len(rounds[-1].tokens)), whole[-1][1])
        assert {len(found.tokens) for found in rounds if not found.proposals} <= {1}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("stop", [7, 99])
def test_the_targets_cache_holds_every_token_but_the_last_and_the_drafts_catches_up(
    script: list[int], stop: int
) -> None:
    pair = replace(tiny_pair(likeness=0.8), stop_tokens=frozenset({stop}))
    decoding = Decoding(pair, PROMPT, settings(count=4, length=21), Script(script))
    list(decoding)
    target, draft = cache_offsets(decoding)
    assert target == len(PROMPT) + decoding.emitted - 1
    assert draft <= target


def test_a_draft_that_sat_out_many_steps_reads_them_in_steps_of_the_prefill() -> None:
    pair = tiny_pair(likeness=0.9)
    long = replace(settings("greedy", 0.0, 3, 40), prefill_step_size=4)
    found = list(Decoding(pair, PROMPT, long, Script([0, 3], plain=15)))
    assert tokens_of(found) == plain_greedy(pair, PROMPT, 40)
    assert any(one.accepted for one in found)


def test_a_text_with_plain_steps_has_the_targets_distribution() -> None:
    pair, length, samples, sampling = tiny_pair(4, likeness=0.3), 3, 400, sampler(1.1)
    expected = np.exp(joint_log_probs(pair, [1, 2], length, sampling))
    observed = np.zeros(4**length)
    for seed in range(samples):
        drawn = Settings(replace(sampling, seed=seed), "rejection", 2, length)
        found = list(Decoding(pair, [1, 2], drawn, Script([0, 2] if seed % 2 else [1, 0], plain=1)))
        observed[int("".join(map(str, tokens_of(found))), 4)] += 1
    assert p_value(observed, expected) > FITS


# -- what is kept of the target's distributions ------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "temperature"), MODES)
@pytest.mark.parametrize("k", [1, 8, 1000])
def test_keeping_distributions_changes_no_round(rule: str, temperature: float, k: int) -> None:
    pair = tiny_pair(likeness=0.9)
    without = settings(rule, temperature)
    decodings = [Decoding(pair, PROMPT, replace(without, teacher_top_k=kept)) for kept in (0, k)]
    bare, kept = (list(decoding) for decoding in decodings)
    assert bare == kept
    assert all(found.target_rows is None for found in bare)
    assert all(len(found.target_rows or ()) == len(found.proposals) + 1 for found in kept)
    for decoding in decodings:
        decoding.complete_bonus_draws()
    assert decodings[0].bonus_draws == decodings[1].bonus_draws


@pytest.mark.parametrize("top_k", [0, 5])
def test_what_is_kept_are_the_distributions_that_verified(top_k: int) -> None:
    pair = tiny_pair(likeness=0.9)
    found = settings()
    decoding = Decoding(pair, PROMPT, replace(found, sampler=replace(found.sampler, top_k=top_k), teacher_top_k=8))
    for one in decoding:
        rows = one.target_rows
        assert rows is not None
        assert rows.k == (top_k or 8)
        both = zip(rows.tokens.tolist(), rows.log_probs.tolist(), strict=True)
        kept = [dict(zip(ids, values, strict=True)) for ids, values in both]
        for offset, draw in enumerate(one.verified):
            for token, log_p in ((draw.draft_token, draw.draft_log_p), (draw.token, draw.token_log_p)):
                assert kept[offset].get(token, log_p) == pytest.approx(log_p, rel=1e-5)


def test_keeping_distributions_costs_no_synchronisation(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[int] = []
    real = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *arrays: (evaluated.append(1), real(*arrays))[1])
    counts = []
    for k in (0, 8):
        evaluated.clear()
        rounds = list(Decoding(tiny_pair(likeness=0.9), PROMPT, replace(settings(), teacher_top_k=k)))
        counts.append((len(evaluated), len(rounds)))
    assert counts[0] == counts[1]


# -- padded and refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "draft"), [(64, 48), (48, 64)])
@pytest.mark.parametrize(("rule", "temperature"), MODES)
def test_ids_that_only_one_model_has_are_never_proposed_nor_emitted(
    target: int, draft: int, rule: str, temperature: float
) -> None:
    pair = tiny_pair(target, draft)
    assert pair.width == 48
    for seed in range(2):
        rounds = list(Decoding(pair, PROMPT, settings(rule, temperature, count=5, length=40, seed=seed)))
        assert max(i for found in rounds for i in (*found.proposals, *found.tokens)) < 48


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(PromptError, match="empty"):
        Decoding(tiny_pair(), [], settings())


def test_a_text_that_outgrows_the_caches_is_refused_before_any_work() -> None:
    pair = tiny_pair(context=5 + 24 + 4)  # one short of prompt, output and a round
    with pytest.raises(PromptError, match="34 positions, the pair holds 33"):
        Decoding(pair, PROMPT, settings())
    assert list(Decoding(replace(pair, context=34), PROMPT, settings()))


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"count": -1}, {"length": 0}, {"rule": "greedy"}):
        with pytest.raises(ConfigError):
            settings(**wrong)
    with pytest.raises(ConfigError, match="teacher_top_k must be at least 0, found -1"):
        replace(settings(), teacher_top_k=-1)


# -- what a server asks for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 3])
def test_log_probabilities_are_those_of_the_target_before_the_sampler(count: int) -> None:
    pair = tiny_pair(likeness=0.9)
    how = replace(settings(count=count, length=25), sampler=sampler(0.7, top_p=0.8, top_k=5), logprobs=3)
    rounds = list(Decoding(pair, PROMPT, how))
    output = tokens_of(rounds)
    logits = pair.target(mx.array([[*PROMPT, *output]]))[0, len(PROMPT) - 1 : -1, : pair.width]
    expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    named = [one for round_ in rounds for one in round_.logprobs]
    assert [one.token for one in named] == output
    for row, one in zip(expected, named, strict=True):
        assert one.logprob == pytest.approx(row[one.token], abs=1e-4)
        assert [value for _, value in one.top] == pytest.approx(sorted(row)[:-4:-1], abs=1e-4)
    assert list(Decoding(pair, PROMPT, replace(how, logprobs=None))) == rounds


@pytest.mark.parametrize("known", [0, 3, 30])
def test_what_caches_have_read_of_a_prompt_changes_nothing(known: int) -> None:
    pair, prompt = tiny_pair(likeness=0.9), [i % 50 for i in range(70)]
    expected = list(Decoding(pair, prompt, settings("greedy", 0.0)))
    target, draft = new_cache(pair.target, 8), new_cache(pair.draft, 8)
    target.prefill(mx.array(prompt[:known], mx.uint32), 512)
    draft.prefill(mx.array(prompt[: known // 2], mx.uint32), 512)
    prefix = KnownPrefix(target, known, draft, known // 2)
    assert list(Decoding(pair, prompt, settings("greedy", 0.0), known=prefix)) == expected


def test_it_gives_way_between_the_parts_of_a_long_prompt() -> None:
    pair, prompt = tiny_pair(likeness=0.9), [i % 50 for i in range(70)]
    turns = list(Decoding(pair, prompt, replace(settings("greedy", 0.0), prefill_step_size=16)).turns())
    assert turns[:5] == [None] * 5  # of the target
    assert turns.count(None) == 10
    assert [turn for turn in turns if turn] == list(Decoding(pair, prompt, settings("greedy", 0.0)))
