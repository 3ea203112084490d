"""The decision of a look: whether the draft in use is worse than the one before it. Rounds in, a p-value out; no mlx.

What is looked at, when, and at which level lies in `looks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import config
from .looks import Look
from .paired_rounds import ScoredText, columns_of
from .sign_flip import sign_flip_test
from .units import unit_name


@dataclass(frozen=True, slots=True)
class LookResult:
    """What a look found: prompt groups scored, p, acceptance lengths in tokens a round, and whether to roll back."""

    prompts: int
    p_value: float
    length: float
    previous_length: float
    rolls_back: bool


def compare_with_previous(
    texts: Sequence[ScoredText], num_draft_tokens: int, look: Look, settings: config.Gate, seed: int
) -> LookResult:
    """Decide a look.

    Args:
        texts: the outputs under the promoted draft (as champion) and the one before it (as candidate), one or more.
        num_draft_tokens: K ≥ 1.
        look: whose alpha counts.
        settings: the thresholds.
        seed: of the test where it draws.

    Raises:
        ValueError: as `paired_rounds.columns_of`.
    """
    columns = columns_of(texts, num_draft_tokens)
    ours, before = columns.champion[:, num_draft_tokens - 1], columns.candidate[:, num_draft_tokens - 1]
    worse = ours - before / (1.0 - settings.rollback_drop_share)
    test = sign_flip_test(worse, columns.groups.tolist(), alpha=look.alpha, seed=seed)
    tokens = columns.tokens.sum()
    length, previous_length = (float(tokens / rounds.sum()) for rounds in (ours, before))
    return LookResult(test.groups, test.p_value, length, previous_length, test.p_value <= look.alpha)


def describe_look(look: Look, found: LookResult, settings: config.Gate) -> str:
    """What a look found, for a person."""
    where = "all new held-out prompts" if look.kind == "check of all" else unit_name(look.unit)
    share, sign = settings.rollback_drop_share, "<=" if found.rolls_back else ">"
    verdict = f"more than {share:.0%} worse than the draft before it" if found.rolls_back else "no worse for sure"
    lengths = f"{found.length:.3f} against {found.previous_length:.3f} tokens a round over {found.prompts} prompts"
    return f"on {where} {verdict}: {lengths}, p = {found.p_value:.3g} {sign} {look.alpha:.3g}"
