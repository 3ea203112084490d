"""Looks test a promoted draft against the previous one on new held-out prompts, at 12, 24, 48, … of them.

A promotion rests on prompts of the past. So when a unit (a large source, or the rest; fixed at the promotion) has 12,
24, 48, … held-out prompt groups that are new since, a look tests it on these groups alone: with X the rounds of a group
under the promoted draft, P under the previous one and δ = `rollback_drop_share`, the draft is rolled back where the
test that Σ(X − P/(1 − δ)) is above 0 has p of at most `rollback_alpha` over the number of looks and of units. The looks
share alpha evenly, for a loss that they must not miss shows at the later ones. An alarm of drift causes a check of
every unit and of all new groups together; nobody knows how many alarms there will be, so the t-th check of each spends
6/(π²t²) of its share of `rollback_alpha`. So a draft that is no worse is rolled back with a chance of
2·`rollback_alpha` at most.

`compare_with_previous` decides a look. Nothing here knows models, files or records, nor mlx.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from .. import config
from ..data.log_position import is_gone, position_after
from .drift import LoggedGeneration
from .paired_rounds import ScoredOutput, columns_of
from .sign_flip import sign_flip_test
from .units_and_levels import alpha_of_attempt, unit_members, unit_name

Kind = Literal["look", "check", "check of all"]


@dataclass(frozen=True, slots=True)
class Look:
    """One look, or one check after an alarm.

    Attributes:
        kind: which of the two; `check of all` is of all units together.
        unit: the source; None is the rest, and for a check of all everything.
        groups: number of new held-out prompt groups.
        record_ids: of the outputs to score.
        alpha: the level of its test.
        p_value: None where it is not done yet.
    """

    kind: Kind
    unit: str | None
    groups: int
    record_ids: tuple[str, ...]
    alpha: float
    p_value: float | None = None
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watching:
    """What was fixed at a promotion, and the looks since.

    Attributes:
        sequence: the pointer's, by which the promotion is known.
        champion, previous: the two drafts; None is the bare one.
        sources: those that are units of their own.
        mark: the end of the log then (`data.log_position`).
        least: groups that make a source a unit, and that the first look needs.
        looks, alpha: how many looks at each unit there will be, and the alpha that they share; checks share as much.
        made: the looks, in order.
    """

    sequence: int
    champion: str
    previous: str | None
    sources: tuple[str, ...]
    mark: tuple[str, ...]
    least: int
    looks: int
    alpha: float
    made: tuple[Look, ...] = ()
    schema: Literal[1] = 1
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @property
    def units(self) -> int:
        """How many: the large sources, and the rest, which new sources join."""
        return len(self.sources) + 1


@dataclass(frozen=True, slots=True)
class NewOutput:
    """A held-out output that is new since a promotion."""

    id: str
    group: str
    source: str


def due_looks(watching: Watching, new: Sequence[NewOutput], *, alarm: bool) -> list[Look]:
    """The looks to make now, not done yet.

    Args:
        watching: of the promotion.
        new: all held-out outputs that are new since.
        alarm: whether drift raised an alarm.

    Returns:
        Where some were begun and not done, these as they were begun: a crash gives no second look. Else
        new ones, each on all new outputs of its unit.
    """
    begun = [look for look in watching.made if look.p_value is None]
    units = unit_members([one.source for one in new], watching.sources)
    looks = []
    for unit, members in units.items():
        looks += _next("look", unit, [new[i] for i in members], watching)
    if alarm:
        for unit, members in units.items():
            looks += _next("check", unit, [new[i] for i in members], watching)
        looks += _next("check of all", None, new, watching)
    return begun or looks


def _next(kind: Kind, unit: str | None, new: Sequence[NewOutput], watching: Watching) -> list[Look]:
    """The next look where there are groups enough: as many as at the last one again, or it would see little new."""
    made = [look for look in watching.made if (look.kind, look.unit) == (kind, unit)]
    if kind == "look" and len(made) >= watching.looks:
        return []
    groups = len({one.group for one in new})
    needed = max([watching.least * 2 ** len(made), *(2 * look.groups for look in made[-1:])])
    if groups < needed:
        return []
    if kind == "look":
        alpha = watching.alpha / watching.looks / watching.units
    else:  # all units together are one more
        alpha = alpha_of_attempt(len(made) + 1, watching.alpha / (watching.units + 1))
    return [Look(kind, unit, groups, tuple(one.id for one in new), alpha)]


def new_outputs(stream: Sequence[LoggedGeneration], mark: Sequence[str]) -> list[NewOutput]:
    """The held-out outputs after a mark whose prompt groups were not there before it.

    A prompt of which generations were dropped from the log may have been there, so its outputs are not new.

    Args:
        stream: all generations of the target, in the order of the log.
        mark: the end of the log at the promotion.
    """
    ids = [one.id for one in stream]
    if is_gone(mark, ids):  # nobody knows what the gate saw: `retraining.gate_step.watch_champion` begins anew
        return []
    start = position_after(mark, ids)
    known = {one.group for one in stream[:start]}
    return [
        NewOutput(one.id, one.group, one.key.source)
        for one in stream[start:]
        if one.split == "heldout" and one.group not in known and not one.came_before
    ]


@dataclass(frozen=True, slots=True)
class LookResult:
    """The result of a look: prompt groups scored, p, both acceptance lengths, and whether to roll back."""

    prompts: int
    p_value: float
    length: float
    previous_length: float
    rolls_back: bool


def compare_with_previous(
    outputs: Sequence[ScoredOutput], num_draft_tokens: int, look: Look, settings: config.Gate, seed: int
) -> LookResult:
    """Decide a look.

    Args:
        outputs: scored under the promoted draft (as champion) and the previous one (as candidate), one or more.
        num_draft_tokens: K ≥ 1.
        look: whose alpha counts.
        settings: the thresholds.
        seed: of the test where it draws.

    Raises:
        ValueError: as `paired_rounds.columns_of`.
    """
    columns = columns_of(outputs, num_draft_tokens)
    promoted, previous = columns.champion[:, num_draft_tokens - 1], columns.candidate[:, num_draft_tokens - 1]
    worse = promoted - previous / (1.0 - settings.rollback_drop_share)
    test = sign_flip_test(worse, columns.groups.tolist(), alpha=look.alpha, seed=seed)
    tokens = columns.tokens.sum()
    length, previous_length = (float(tokens / rounds.sum()) for rounds in (promoted, previous))
    return LookResult(test.groups, test.p_value, length, previous_length, test.p_value <= look.alpha)


def describe_look(look: Look, result: LookResult, settings: config.Gate) -> str:
    """The result of a look in a sentence."""
    where = "all new held-out prompts" if look.kind == "check of all" else unit_name(look.unit)
    share, sign = settings.rollback_drop_share, "<=" if result.rolls_back else ">"
    verdict = f"more than {share:.0%} worse than the previous draft" if result.rolls_back else "no worse for sure"
    lengths = (
        f"acceptance length {result.length:.3f} against {result.previous_length:.3f} over {result.prompts} prompts"
    )
    return f"on {where} {verdict}: {lengths}, p = {result.p_value:.3g} {sign} {look.alpha:.3g}"
