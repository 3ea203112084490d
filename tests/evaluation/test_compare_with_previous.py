"""A look rolls back where the previous draft is better for sure, and says what it found."""

from __future__ import annotations

import numpy as np
import pytest

from draftloop.config import Gate
from draftloop.evaluation.looks import Look, compare_with_previous, describe_look
from draftloop.evaluation.paired_rounds import ScoredOutput

LOOK = Look("look", "chat", 12, (), 0.005)
SETTINGS = Gate()


def texts(prompts: int, worse: float, spread: float = 0.01, seed: int = 0) -> list[ScoredOutput]:
    """The draft in use takes this share more rounds than the one before, give or take the spread."""
    rng = np.random.default_rng(seed)
    before = rng.uniform(20.0, 30.0, prompts)
    now = before * (1.0 + rng.normal(worse, spread, prompts))
    return [ScoredOutput(f"{i}", "chat", 60, (n,), (b,)) for i, (n, b) in enumerate(zip(now, before, strict=True))]


@pytest.mark.parametrize(("worse", "rolls_back"), [(-0.1, False), (0.0, False), (0.015, False), (0.06, True)])
def test_only_a_loss_above_the_share_rolls_back(worse: float, rolls_back: bool) -> None:
    found = compare_with_previous(texts(48, worse), 1, LOOK, SETTINGS, seed=0)
    assert found.rolls_back == rolls_back == (found.p_value <= LOOK.alpha)
    assert found.length / found.previous_length == pytest.approx(1.0 / (1.0 + worse), rel=0.01)


def test_twelve_prompts_that_all_lose_more_are_enough() -> None:
    found = compare_with_previous(texts(12, 0.06, spread=0.001), 1, LOOK, SETTINGS, seed=0)
    assert (found.p_value, found.rolls_back) == (2.0**-12, True)


def test_equal_drafts_are_never_rolled_back() -> None:
    assert compare_with_previous(texts(192, 0.0, spread=0.0), 1, LOOK, SETTINGS, seed=0).p_value > 0.99


def test_outputs_of_one_group_are_one_piece_of_evidence() -> None:
    copies = [ScoredOutput("the same", "chat", 60, (30.0,), (20.0,)) for _ in range(20)]
    assert compare_with_previous(copies, 1, LOOK, SETTINGS, seed=0).p_value == 0.5


def test_a_person_reads_what_was_found() -> None:
    found = compare_with_previous(texts(12, 0.06, spread=0.001), 1, LOOK, SETTINGS, seed=0)
    assert describe_look(LOOK, found, SETTINGS) == (
        "on source chat more than 2% worse than the previous draft: acceptance length 2.240 against 2.374 over 12 "
        "prompts, p = 0.000244 <= 0.005"
    )


def test_a_person_reads_how_many_prompts_were_scored_and_not_how_many_there_were() -> None:
    found = compare_with_previous(texts(10, 0.06, spread=0.001), 1, LOOK, SETTINGS, seed=0)
    assert LOOK.groups == 12
    assert "over 10 prompts" in describe_look(LOOK, found, SETTINGS)
