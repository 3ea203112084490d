"""How often a gate promotes: candidates judged by the real `gate.decide`, counted, with exact intervals.

The sign-flip test alone is counted beside the whole gate. What it turns down the gate turns down as well, so the rest
of the gate is asked only where the test passes: the counts are those of asking it every time. The bootstrap's
intervals, which decide nothing, are not computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
from gate_candidates import Parts, candidate, loses_evenly, loses_on_a_few
from gate_worlds import ATTEMPTS, BEYOND, NULLS, Attempt, K, Pool
from scipy.stats import binomtest

from draftloop.config import Gate
from draftloop.decoding.draft_length import LatencyProfile
from draftloop.evaluation import gate
from draftloop.evaluation.paired_rounds import Columns, LengthComparison, ScoredOutput
from draftloop.evaluation.sign_flip import sign_flip_test
from draftloop.evaluation.units_and_levels import alpha_of_attempt

SETTINGS = Gate(max_attempts=ATTEMPTS)
COSTS = LatencyProfile(t_draft=0.003, t_target=tuple(0.030 + 0.001 * k for k in range(SETTINGS.max_draft_tokens + 1)))
LOSSES = {"evenly": loses_evenly, "on a few": loses_on_a_few}


@dataclass(frozen=True)
class Rate:
    """A share of epochs or candidates, with its exact (Clopper-Pearson) interval."""

    share: float
    low: float
    high: float


def rate(passed: int, of: int, level: float = 0.95) -> Rate:
    """The share and its interval."""
    interval = binomtest(passed, of).proportion_ci(level, method="exact")
    return Rate(passed / of, float(interval.low), float(interval.high))


def p_value(attempt: Attempt, seed: int) -> float:
    """Of the gate's first test at K; the draws suffice for the last attempt, so p is the same at every one."""
    differences = attempt.champion[:, K - 1] - attempt.candidate[:, K - 1]
    if differences.sum() < 0:
        return 1.0  # at least a half, which is as good: it passes at no attempt
    alpha = alpha_of_attempt(ATTEMPTS, SETTINGS.alpha)
    return sign_flip_test(differences, range(len(differences)), alpha=alpha, seed=seed).p_value


def texts_of(attempt: Attempt) -> list[ScoredOutput]:
    """What the gate reads, every prompt a group of its own."""
    columns = (attempt.source, attempt.tokens, attempt.champion, attempt.candidate)
    return [
        ScoredOutput(str(i), str(source), int(tokens), tuple(champion.tolist()), tuple(candidate.tolist()))
        for i, (source, tokens, champion, candidate) in enumerate(zip(*columns, strict=True))
    ]


def decided(attempt: Attempt, number: int, seed: int) -> gate.Decision:
    """What the real gate says to the candidate at attempt `number` of its epoch, but for the intervals."""
    with patch.object(gate, "compare_lengths", _lengths):
        return gate.decide(
            texts_of(attempt), num_draft_tokens=K, attempt=number, settings=SETTINGS, profile=COSTS, seed=seed
        )


def _lengths(columns: Columns, k: int, _level: float, _seed: int) -> LengthComparison:
    """As `paired_rounds.compare`, without an interval."""
    champion, candidate = (
        columns.tokens.sum() / rounds[:, k - 1].sum() for rounds in (columns.champion, columns.candidate)
    )
    return LengthComparison(len(set(columns.groups)), champion, candidate, candidate - champion, None, None)


def promoted(attempt: Attempt, number: int, seed: int) -> bool:
    """Whether the real gate promotes."""
    return decided(attempt, number, seed).outcome == "promote"


def epoch(attempts: Iterable[Attempt], seed: int) -> tuple[bool, bool]:
    """Whether the test alone passes at any attempt, and whether the gate promotes at any."""
    passes = promotes = False
    for number, attempt in enumerate(attempts, 1):
        if p_value(attempt, seed + number) <= alpha_of_attempt(number, SETTINGS.alpha):
            passes = True
            promotes = promotes or promoted(attempt, number, seed + number)
    return passes, promotes


def epochs(pool: Pool, kind: str, prompts: int, number: int, seed: int) -> dict[str, Any]:
    """Rates over so many epochs of five attempts in a world of candidates that are no better."""
    world, rng = (NULLS | BEYOND)[kind], np.random.default_rng([seed, prompts])
    passed = promotions = 0
    for i in range(number):
        passes, promotes = epoch(world(pool, prompts, rng), seed=ATTEMPTS * i)
        passed, promotions = passed + passes, promotions + promotes
    return {
        "kind": kind,
        "prompts": prompts,
        "epochs": number,
        "test": asdict(rate(passed, number)),
        "gate": asdict(rate(promotions, number)),
        "gate_99": asdict(rate(promotions, number, 0.99)),
    }


def power(pool: Pool, parts: Parts, number: int, seed: int) -> dict[str, Any]:
    """Shares of candidates with these true changes that are promoted, at the first attempt and at the fifth."""
    rng = np.random.default_rng([seed, len(parts), parts[0].prompts, round(1000 * parts[0].change)])
    counts = dict.fromkeys(("test_1", "gate_1", "test_5", "gate_5"), 0)
    for i in range(number):
        one = candidate(pool, parts, rng)
        p = p_value(one, seed=i)
        first, last = (p <= alpha_of_attempt(t, SETTINGS.alpha) for t in (1, ATTEMPTS))
        promotion = first and promoted(one, 1, seed=i)  # the other conditions know no attempt
        for name, passed in zip(counts, (first, promotion, last, last and promotion), strict=True):
            counts[name] += passed
    return {"candidates": number} | {name: asdict(rate(passed, number)) for name, passed in counts.items()}


def let_through(pool: Pool, kind: str, prompts: int, number: int, seed: int) -> dict[str, Any]:
    """How often one source that loses just what none may is said not to lose it, for a way in which it loses."""
    rng = np.random.default_rng([seed, prompts, *kind.encode()])
    passed = refused = 0
    for i in range(number):
        (unit,) = decided(LOSSES[kind](pool, prompts, SETTINGS.max_drop_share, rng), 1, seed=i).units
        passed, refused = passed + (unit.p_not_worse <= SETTINGS.unit_alpha), refused + (not unit.ok)
    return {
        "kind": kind,
        "prompts": prompts,
        "candidates": number,
        "not_worse": asdict(rate(passed, number)),
        "unit_ok": asdict(rate(number - refused, number)),
    }
