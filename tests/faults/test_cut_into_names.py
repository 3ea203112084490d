"""A source that loses is refused under one name or under ten that are each too small to be judged alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fault_table import Row

from draftloop.config import Gate
from draftloop.decoding.draft_length import LatencyProfile
from draftloop.evaluation.gate import decide
from draftloop.evaluation.paired_rounds import ScoredOutput

pytestmark = pytest.mark.row("a harmful source cut into many names")

K, TOKENS = 4, 60
COSTS = LatencyProfile(t_draft=0.05, t_target=tuple(1.0 + 0.05 * k for k in range(9)))
BELOW_THE_MINIMUM = 11


def rounds_at(weight: float) -> tuple[float, ...]:
    """Expected rounds at K = 1 to 8 where each proposal is kept with probability `weight`."""
    return tuple(TOKENS / sum(weight**a for a in range(k + 1)) for k in range(1, 9))


def texts(random: np.random.Generator, source: str, prompts: int, change: float) -> list[ScoredOutput]:
    """The candidate changes the acceptance length of each prompt by about so many tokens a round."""
    found = []
    for i in range(prompts):
        champion = rounds_at(float(random.uniform(0.45, 0.7)))
        length = TOKENS / champion[K - 1]
        share = length / max(1.05, length + change + float(random.normal(0.0, 0.1)))
        candidate = tuple(min(float(TOKENS), rounds * share) for rounds in champion)
        found.append(ScoredOutput(f"{source} {i}", source, TOKENS, champion, candidate))
    return found


def outcome(random: np.random.Generator, names: int, loss: float, seed: int) -> str:
    gaining = texts(random, "chat", 300, 0.3)
    losing = [t for name in range(names) for t in texts(random, f"day {name}", BELOW_THE_MINIMUM, -loss)]
    found = decide([*gaining, *losing], num_draft_tokens=K, attempt=1, settings=Gate(), profile=COSTS, seed=seed)
    assert found.p_value is not None
    assert found.p_value < 0.001  # over all prompts it gains, and only the guard of the sources is in its way
    return found.outcome


@pytest.mark.parametrize("names", [3, 10])
def test_what_loses_under_many_small_names_is_promoted_once_in_a_hundred_at_most(names: int, row: Row) -> None:
    trials, random = row.count(20, 500), np.random.default_rng(names)
    promoted = sum(outcome(random, names, 0.3 if names == 3 else 0.2, seed) == "promote" for seed in range(trials))
    row.did(trials, f"candidates that lose on {names} names of {BELOW_THE_MINIMUM} prompts")
    row.notes.append(f"{promoted} of {trials} promoted with {names} names")
    assert promoted <= math.floor(0.01 * trials)


def test_what_loses_nowhere_is_promoted_under_as_many_names() -> None:
    """The guard refuses a loss, not small names."""
    random = np.random.default_rng(0)
    found = [outcome(random, 10, 0.0, seed) for seed in range(10)]
    assert found.count("promote") >= 9
