"""How often a gate promotes in a world: epochs judged by the real `gate.decide`, counted, with exact intervals.

The sign-flip test alone is counted beside the whole gate. What it turns down the gate turns down as well, so the rest
of the gate is asked only where the test passes: the counts are those of asking it every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from gate_worlds import ATTEMPTS, Attempt, K, Pool, Second, World, better, true_change
from scipy.stats import binomtest

from draftloop.alpha_spending import alpha_of_attempt
from draftloop.config import Gate
from draftloop.gate import decide
from draftloop.paired_rounds import ScoredText
from draftloop.sign_flip import sign_flip_test
from draftloop.timings import Costs

SETTINGS = Gate(max_attempts=ATTEMPTS)
COSTS = Costs(t_draft=0.003, t_target=tuple(0.030 + 0.001 * k for k in range(SETTINGS.max_draft_tokens + 1)))

Step = Callable[[int], None]


@dataclass(frozen=True)
class Rate:
    """A share of epochs or candidates, with its exact (Clopper-Pearson) 95% interval."""

    share: float
    low: float
    high: float


def rate(passed: int, of: int) -> Rate:
    """The share and its interval."""
    interval = binomtest(passed, of).proportion_ci(0.95, method="exact")
    return Rate(passed / of, float(interval.low), float(interval.high))


def p_value(attempt: Attempt, seed: int) -> float:
    """Of the gate's test at K; the draws suffice for the last attempt, so p is the same at every one."""
    differences = attempt.champion[:, K - 1] - attempt.candidate[:, K - 1]
    alpha = alpha_of_attempt(ATTEMPTS, SETTINGS.alpha)
    return sign_flip_test(differences, range(len(differences)), alpha=alpha, seed=seed).p_value


def promoted(attempt: Attempt, number: int, seed: int) -> bool:
    """What the real gate says to the candidate at attempt `number` of its epoch."""
    columns = (attempt.source, attempt.tokens, attempt.champion, attempt.candidate)
    texts = [
        ScoredText(str(i), str(source), int(tokens), tuple(champion.tolist()), tuple(candidate.tolist()))
        for i, (source, tokens, champion, candidate) in enumerate(zip(*columns, strict=True))
    ]
    decision = decide(
        texts,
        num_draft_tokens=K,
        attempt=number,
        settings=SETTINGS,
        costs=COSTS,
        seed=seed,
    )
    return decision.outcome == "promote"


def epoch(attempts: Iterable[Attempt], seed: int) -> tuple[bool, bool]:
    """Whether the test alone passes at any attempt, and whether the gate promotes at any."""
    passes = promotes = False
    for number, attempt in enumerate(attempts, 1):
        if p_value(attempt, seed + number) <= alpha_of_attempt(number, SETTINGS.alpha):
            passes = True
            promotes = promotes or promoted(attempt, number, seed + number)
    return passes, promotes


def epochs(world: World, pool: Pool, prompts: int, number: int, seed: int, step: Step) -> dict[str, Any]:
    """Rates over so many epochs of five attempts in a world."""
    rng = np.random.default_rng([seed, prompts])
    passed = promotions = 0
    for i in range(number):
        passes, promotes = epoch(world(pool, prompts, rng), seed=ATTEMPTS * i)
        passed, promotions = passed + passes, promotions + promotes
        step(i + 1)
    return {
        "prompts": prompts,
        "epochs": number,
        "test": asdict(rate(passed, number)),
        "gate": asdict(rate(promotions, number)),
    }


def power(
    pool: Pool, prompts: int, second: Second, effect: float, number: int, seed: int, step: Step
) -> dict[str, Any]:
    """Share of candidates of one true effect that are promoted, at the first attempt and at the fifth."""
    rng = np.random.default_rng([seed, prompts, round(1000 * effect)])
    counts = dict.fromkeys(("test_1", "gate_1", "test_5", "gate_5"), 0)
    for i in range(number):
        candidate = better(pool, prompts, second, effect, rng)
        p = p_value(candidate, seed=i)
        first, last = (p <= alpha_of_attempt(t, SETTINGS.alpha) for t in (1, ATTEMPTS))
        promotion = first and promoted(candidate, 1, seed=i)  # the other conditions know no attempt
        for name, passed in zip(counts, (first, promotion, last, last and promotion), strict=True):
            counts[name] += passed
        step(i + 1)
    rates = {name: asdict(rate(passed, number)) for name, passed in counts.items()}
    change = None if second == "none" else true_change(pool, 1, second, effect)
    row = {"second": second, "prompts": prompts, "effect": effect, "second_effect": change, "candidates": number}
    return row | rates
