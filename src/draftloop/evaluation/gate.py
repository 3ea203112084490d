"""The gate: does a candidate replace the champion? `decide` decides, from held-out outputs scored under both drafts.

It takes rounds, tokens and seconds and returns a decision with its reasons; it knows nothing of models, records, files
or mlx. `gate_evaluation` scores both drafts for it, and may still refuse what `decide` would promote: its live check
decodes some prompts. `retraining.gate_step` acts on the decision.

`decide` promotes a candidate where all of these hold, and refuses it otherwise:

1. more is accepted than chance labels would give (`sign_flip`): p is at most the alpha of this attempt;
2. every unit (a source with enough prompts, or the rest: `units_and_levels`) is proven not to be worse. With C the
   rounds of a prompt group under the champion, R under the candidate and δ = `max_drop_share`, the test that
   Σ(C/(1 − δ) − R) is above 0 has p of at most `unit_alpha`. All units must pass, so their number needs no correction.
   A rest with too few prompts for this test is exempt from it;
3. no unit is proven to lose more than μ = `material_drop_share`: the test that Σ(R − C/(1 − μ)) is above 0 has p above
   `unit_alpha` over the number of units, or above `unit_alpha` itself for a rest that is exempt from 2;
4. the speed-up that is forecast for this machine, each draft at its own best draft length, does not fall.

With too few prompts there is no decision, and nothing is spent. The bootstrap's intervals are shown and decide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .. import config
from ..decoding.draft_length import LatencyProfile
from .estimator import FloatArray, best_k, forecast
from .intervals import LEVEL
from .paired_rounds import Columns, LengthComparison, ScoredOutput, columns_of, compare_lengths, spread, take
from .sign_flip import SignFlip, sign_flip_test
from .units_and_levels import alpha_of_attempt, large_sources, unit_members, unit_name

GateOutcome = Literal["promote", "refuse", "inconclusive"]

_MOST_SHARE = 0.99
ONE_SIDED = 0.90  # the upper end of a two-sided 90% interval is a one-sided 95% bound


@dataclass(frozen=True, slots=True)
class UnitCheck:
    """One unit: acceptance lengths of both drafts, and the results of its tests.

    Attributes:
        unit: the source's name; None is the rest.
        sources: the sources in it.
        prompts: prompt groups.
        champion_length, candidate_length: acceptance lengths.
        p_not_worse: of the test that it loses less than `max_drop_share`; small is good.
        p_loss: of the test that it loses more than `material_drop_share`; up to `loss_alpha` the candidate is refused.
        needs_proof: whether it has enough prompts for `p_not_worse` to count.
        loss_alpha: the level of `p_loss`: `unit_alpha` over the number of units, or all of it for an exempt rest.
        ok: whether it passes both tests.
    """

    unit: str | None
    sources: tuple[str, ...]
    prompts: int
    champion_length: float
    candidate_length: float
    p_not_worse: float
    p_loss: float
    needs_proof: bool
    loss_alpha: float
    ok: bool


@dataclass(frozen=True, slots=True)
class SourceCheck:
    """One source: acceptance lengths, the drop (champion − candidate) and its one-sided 95% upper bound.

    `drop_upper` is None for a single prompt group, and decides nothing. `judged` says whether the source is a unit of
    its own; else it is part of the rest. `ok` is its unit's.
    """

    source: str
    prompts: int
    champion_length: float
    candidate_length: float
    drop: float
    drop_upper: float | None
    judged: bool
    ok: bool


@dataclass(frozen=True, slots=True)
class Forecast:
    """The best draft length and the speed-up over plain decoding there; 0 and 1 mean that speculation is left off."""

    best_k: int
    speed_up: float


@dataclass(frozen=True, slots=True)
class Decision:
    """The gate's decision, and all that it rests on; what does not apply is None. Plain values throughout.

    Attributes:
        outcome: `promote`, `refuse` or `inconclusive`.
        reasons: a sentence each: what was proven, or every condition that failed, or what was missing.
        num_draft_tokens: K at which both were compared.
        prompts: prompt groups.
        texts: outputs.
        tokens: of all outputs.
        champion_length: acceptance length.
        candidate_length: acceptance length.
        difference: candidate minus champion; exactly 0 for two drafts that score alike.
        ci_low: lower end of the paired cluster bootstrap's 95% interval, which decides nothing.
        ci_high: upper end.
        p_value: of the sign-flip test, in (0, 1].
        alpha: the level of the test at this attempt.
        exact: whether p comes from all assignments of signs.
        worse_share: share of the prompt groups that take more rounds under the candidate.
        worst_decile: the acceptance length of a tenth of the prompt groups changes by this or less. Like `worse_share`
            it is only shown: a draft that loses on a few prompts and gains more on the others is better on average.
        units: large sources in order of name, then the rest.
        sources: in order of name.
        champion_forecast: at its best K.
        candidate_forecast: at its best K.
    """

    outcome: GateOutcome
    reasons: tuple[str, ...]
    num_draft_tokens: int
    prompts: int
    texts: int
    tokens: int
    champion_length: float | None = None
    candidate_length: float | None = None
    difference: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    alpha: float | None = None
    exact: bool | None = None
    worse_share: float | None = None
    worst_decile: float | None = None
    units: tuple[UnitCheck, ...] = ()
    sources: tuple[SourceCheck, ...] = ()
    champion_forecast: Forecast | None = None
    candidate_forecast: Forecast | None = None


_Condition = tuple[bool, str]
"""Whether a condition of the promotion holds, and the sentence for the reasons."""


def decide(
    outputs: Sequence[ScoredOutput],
    *,
    num_draft_tokens: int,
    attempt: int,
    settings: config.Gate,
    profile: LatencyProfile,
    seed: int,
) -> Decision:
    """Decide whether a candidate replaces the champion.

    Args:
        outputs: held-out ones; with fewer than `settings.min_heldout_prompts` groups their rounds are not read.
        num_draft_tokens: K ≥ 1, the same for both; the rounds must reach it.
        attempt: t ≥ 1 among the scored attempts of this held-out epoch; the shares of all t sum to `settings.alpha`.
        settings: the thresholds.
        profile: latencies of both drafts alike, or the noise between two measurements would decide; speed is forecast
            for every K up to the end of `t_target`, which has T(1) and T(2) at least.
        seed: of the bootstrap, and of the test where it draws.

    Raises:
        ValueError: K or the attempt is out of range, the rounds do not go far enough or not equally far, the
            profile reaches no K ≥ 1, or a number is not positive and finite.
    """
    if num_draft_tokens < 1 or attempt < 1:
        raise ValueError(f"K {num_draft_tokens}, attempt {attempt}: expected 1 or more of both")
    prompts, tokens = len({output.group for output in outputs}), sum(output.tokens for output in outputs)
    if prompts < settings.min_heldout_prompts:
        missing = f"{prompts} held-out prompts: a verdict needs {settings.min_heldout_prompts}; nothing was spent"
        return Decision("inconclusive", (missing,), num_draft_tokens, prompts, len(outputs), tokens)
    if len(profile.t_target) < 2:
        raise ValueError(f"a latency profile of {len(profile.t_target)} target widths: expected T(1), T(2), …")
    columns = columns_of(outputs, max(num_draft_tokens, len(profile.t_target) - 1))
    alpha = alpha_of_attempt(attempt, settings.alpha)
    test = sign_flip_test(
        (columns.champion - columns.candidate)[:, num_draft_tokens - 1], columns.groups.tolist(), alpha=alpha, seed=seed
    )
    overall = compare_lengths(columns, num_draft_tokens, LEVEL, seed)
    large = large_sources(
        zip(columns.groups.tolist(), columns.sources.tolist(), strict=True), settings.min_heldout_prompts
    )
    members = unit_members(columns.sources.tolist(), large)
    units = tuple(
        _check_unit(unit, take(columns, rows), num_draft_tokens, settings, len(members), seed)
        for unit, rows in members.items()
    )
    worse_share, worst_decile = spread(columns, num_draft_tokens)
    before = _forecast(columns.tokens, columns.champion, profile)
    after = _forecast(columns.tokens, columns.candidate, profile)
    conditions = [
        _accepts_more(overall, test, alpha, attempt),
        *(condition for check in units for condition in _unit_holds(check, settings)),
        _no_slower(before, after),
    ]
    promoted = all(holds for holds, _ in conditions)
    return Decision(
        outcome="promote" if promoted else "refuse",
        reasons=tuple(sentence for holds, sentence in conditions if holds == promoted),
        num_draft_tokens=num_draft_tokens,
        prompts=prompts,
        texts=len(outputs),
        tokens=tokens,
        champion_length=overall.champion,
        candidate_length=overall.candidate,
        difference=overall.difference,
        ci_low=overall.low,
        ci_high=overall.high,
        p_value=test.p_value,
        alpha=alpha,
        exact=test.exact,
        worse_share=worse_share,
        worst_decile=worst_decile,
        units=units,
        sources=tuple(
            _check_source(source, columns, num_draft_tokens, check, seed)
            for source, check in sorted((source, check) for check in units for source in check.sources)
        ),
        champion_forecast=before,
        candidate_forecast=after,
    )


def _check_unit(unit: str | None, columns: Columns, k: int, settings: config.Gate, units: int, seed: int) -> UnitCheck:
    groups = columns.groups.tolist()
    champion, candidate = columns.champion[:, k - 1], columns.candidate[:, k - 1]
    tokens = float(columns.tokens.sum())
    length, alpha = tokens / float(champion.sum()), settings.unit_alpha
    allowed, material = _allowed_share(settings, length), settings.material_drop_share
    not_worse = sign_flip_test(champion / (1.0 - allowed) - candidate, groups, alpha=alpha, seed=seed)
    needs_proof = not_worse.groups >= settings.min_heldout_prompts
    loss_alpha = alpha / units if needs_proof else alpha
    loss = sign_flip_test(candidate - champion / (1.0 - material), groups, alpha=loss_alpha, seed=seed)
    return UnitCheck(
        unit=unit,
        sources=tuple(sorted(set(columns.sources.tolist()))),
        prompts=not_worse.groups,
        champion_length=length,
        candidate_length=tokens / float(candidate.sum()),
        p_not_worse=not_worse.p_value,
        p_loss=loss.p_value,
        needs_proof=needs_proof,
        loss_alpha=loss_alpha,
        ok=(not needs_proof or not_worse.p_value <= alpha) and loss.p_value > loss_alpha,
    )


def _allowed_share(settings: config.Gate, champion_length: float) -> float:
    """δ, in (0, 1). The deprecated `max_drop` is in tokens of acceptance length, and may be more than all of it."""
    if settings.max_drop is None:
        return settings.max_drop_share
    return min(settings.max_drop / champion_length, _MOST_SHARE)


def _check_source(source: str, columns: Columns, k: int, unit: UnitCheck, seed: int) -> SourceCheck:
    """One source of `columns`; the bound is the lower end of the interval of candidate minus champion, negated."""
    own = compare_lengths(take(columns, np.flatnonzero(columns.sources == source).tolist()), k, ONE_SIDED, seed)
    return SourceCheck(
        source=source,
        prompts=own.prompts,
        champion_length=own.champion,
        candidate_length=own.candidate,
        drop=own.champion - own.candidate,
        drop_upper=None if own.low is None else 0.0 - own.low,
        judged=unit.unit == source,
        ok=unit.ok,
    )


def _forecast(tokens: FloatArray, rounds: FloatArray, profile: LatencyProfile) -> Forecast:
    """The best K by the acceptance lengths over all outputs, and the speed-up there."""
    lengths = {k: float(tokens.sum() / rounds[:, k - 1].sum()) for k in range(1, len(profile.t_target))}
    t_plain = profile.t_target[0]
    best = best_k(lengths, profile.t_draft, t_plain, dict(enumerate(profile.t_target)))
    speed_up = forecast(lengths.get(best, 1.0), profile.t_draft, t_plain, profile.t_target[best], best)
    return Forecast(best, speed_up)


def _accepts_more(overall: LengthComparison, test: SignFlip, alpha: float, attempt: int) -> _Condition:
    holds = test.p_value <= alpha
    change = overall.candidate / overall.champion - 1.0
    lengths = f"acceptance length {change:+.1%}"
    lengths += f" ({overall.candidate:.3f} against {overall.champion:.3f}) over {overall.prompts} held-out prompts"
    verdict = "more than chance labels give" if holds else "no more than chance labels may give"
    sign = "<=" if holds else ">"
    return holds, f"{lengths}: {verdict}, p = {test.p_value:.3g} {sign} {alpha:.3g} at attempt {attempt}"


def _unit_holds(check: UnitCheck, settings: config.Gate) -> list[_Condition]:
    """The conditions on a unit: it is proven not to be worse, unless it is exempt; and no loss of it is proven."""
    name = unit_name(check.unit)
    lengths = f"{check.candidate_length:.3f} against {check.champion_length:.3f} over {check.prompts} prompts"
    share, alpha = _allowed_share(settings, check.champion_length), settings.unit_alpha
    not_worse, loses = check.p_not_worse <= alpha, check.p_loss <= check.loss_alpha
    conditions = []
    if check.needs_proof:
        verdict = f"does not lose {share:.0%}" if not_worse else f"may lose {share:.0%} or more"
        sign = "<=" if not_worse else ">"
        sentence = f"{name} {verdict}: {lengths}, p = {check.p_not_worse:.3g} {sign} {alpha:g}"
        conditions.append((not_worse, sentence))
    if loses:
        more = f"loses more than {settings.material_drop_share:.0%}"
        conditions.append((False, f"{name} {more}: {lengths}, p = {check.p_loss:.3g} <= {check.loss_alpha:.3g}"))
    return conditions


def _no_slower(champion: Forecast, candidate: Forecast) -> _Condition:
    holds = candidate.speed_up >= champion.speed_up
    if champion.best_k == candidate.best_k == 0:
        return holds, "with either draft no draft length is forecast to beat plain decoding on this machine"
    verdict = "does not fall" if holds else "falls"
    after, before = (f"{of.speed_up:.3f} x plain at K = {of.best_k}" for of in (candidate, champion))
    return holds, f"the forecast speed-up {verdict}: {after} against {before}"
