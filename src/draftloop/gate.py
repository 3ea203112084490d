"""The gate: does a candidate draft replace the champion? One decision from held-out texts scored under both.

It takes rounds, tokens and seconds and returns a verdict with its reasons; it knows nothing of models, records, files
or mlx. A candidate is promoted where all of this holds, and refused otherwise:

1. more is accepted than chance labels would give (`sign_flip`), at this attempt's share of alpha;
2. in every source with enough prompts the one-sided 95% upper bound of the drop in acceptance length is below
   `max_drop`;
3. the speed-up forecast for this machine, each draft at its own best draft length, does not fall.

With too few prompts there is no verdict, and nothing is spent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from . import config
from .acceptance import best_k, forecast
from .sign_flip import SignFlip, alpha_of_attempt, sign_flip_test
from .stats import LEVEL, FloatArray, paired_ratio_difference_interval
from .timings import Costs

Outcome = Literal["promote", "refuse", "inconclusive"]

ONE_SIDED = 0.90  # the upper end of a two-sided 90% interval is a one-sided 95% bound


@dataclass(frozen=True, slots=True)
class ScoredText:
    """One held-out output under both drafts.

    Attributes:
        group: its prompt group, the unit of every test.
        source: where its prompt came from.
        tokens: N, the emitted tokens; end-of-text is one of them.
        champion_rounds: expected rounds at K = 1, 2, …, as far as was scored; as many for every text.
        candidate_rounds: likewise.
    """

    group: str
    source: str
    tokens: int
    champion_rounds: tuple[float, ...]
    candidate_rounds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SourceCheck:
    """One source: acceptance lengths, the drop (champion − candidate) and its one-sided 95% upper bound.

    `drop_upper` is None for a single prompt group. A source that is not `judged`, for want of prompts, is `ok`.
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
    """The best draft length and the speed-up over plain decoding there; 0 and 1 say to leave speculation off."""

    best_k: int
    speed_up: float


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict, and all that it rests on; what does not apply is None. Plain values throughout.

    Attributes:
        outcome: `promote`, `refuse` or `inconclusive`.
        reasons: a sentence each: what was proven, or every condition that failed, or what was missing.
        num_draft_tokens: K at which both were compared.
        prompts: prompt groups.
        texts: outputs.
        tokens: of all outputs.
        champion_length: tokens a round.
        candidate_length: tokens a round.
        difference: candidate minus champion; exactly 0 for two drafts that score alike.
        ci_low: lower end of the paired cluster bootstrap's 95% interval, which decides nothing.
        ci_high: upper end.
        p_value: of the sign-flip test, in (0, 1].
        alpha: what p was held against.
        exact: whether p comes from all assignments of signs.
        sources: in order of name.
        champion_forecast: at its best K.
        candidate_forecast: at its best K.
    """

    outcome: Outcome
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
    sources: tuple[SourceCheck, ...] = ()
    champion_forecast: Forecast | None = None
    candidate_forecast: Forecast | None = None


@dataclass(frozen=True, slots=True)
class _Columns:
    """The texts as arrays: groups and sources (n,), tokens (n,) float64, rounds (n, L) float64 by text and K − 1."""

    groups: npt.NDArray[np.object_]
    sources: npt.NDArray[np.object_]
    tokens: FloatArray
    champion: FloatArray
    candidate: FloatArray


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Acceptance lengths of both at one K, and candidate minus champion with the ends of its interval."""

    prompts: int
    champion: float
    candidate: float
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class _Condition:
    """One thing that a promotion needs, in a sentence that fits how it came out."""

    holds: bool
    sentence: str


def decide(
    texts: Sequence[ScoredText],
    *,
    num_draft_tokens: int,
    attempt: int,
    settings: config.Gate,
    costs: Costs,
    seed: int,
) -> Decision:
    """Judge a candidate against the champion.

    Args:
        texts: held-out outputs; with fewer than `settings.min_heldout_prompts` groups their rounds are not read.
        num_draft_tokens: K ≥ 1, the same for both; the rounds must reach it.
        attempt: t ≥ 1 among the scored attempts of this held-out epoch; the shares of all t sum to `settings.alpha`.
        settings: the thresholds.
        costs: of both drafts alike, or the noise between two measurements would decide; speed is forecast for every K
            up to the end of `t_target`, which has T(1) and T(2) at least.
        seed: of the bootstrap, and of the test where it draws.

    Raises:
        ValueError: K or the attempt is out of range, the rounds do not go far enough or not equally far, the costs
            speak of no K ≥ 1, or a number is not positive and finite.
    """
    if num_draft_tokens < 1 or attempt < 1:
        raise ValueError(f"K {num_draft_tokens}, attempt {attempt}: expected 1 or more of both")
    prompts, tokens = len({text.group for text in texts}), sum(text.tokens for text in texts)
    if prompts < settings.min_heldout_prompts:
        missing = f"{prompts} held-out prompts: a verdict needs {settings.min_heldout_prompts}; nothing was spent"
        return Decision("inconclusive", (missing,), num_draft_tokens, prompts, len(texts), tokens)
    if len(costs.t_target) < 2:
        raise ValueError(f"costs for {len(costs.t_target)} target widths: expected T(1), T(2), … as far as is known")
    columns = _columns(texts, max(num_draft_tokens, len(costs.t_target) - 1))
    alpha = alpha_of_attempt(attempt, settings.alpha)
    test = sign_flip_test(
        (columns.champion - columns.candidate)[:, num_draft_tokens - 1], columns.groups.tolist(), alpha=alpha, seed=seed
    )
    overall = _compare(columns, num_draft_tokens, LEVEL, seed)
    sources = _check_sources(columns, num_draft_tokens, settings, seed)
    before = _forecast(columns.tokens, columns.champion, costs)
    after = _forecast(columns.tokens, columns.candidate, costs)
    conditions = [
        _accepts_more(overall, test, alpha, attempt),
        *_no_source_loses(sources, settings.max_drop),
        _no_slower(before, after),
    ]
    promoted = all(condition.holds for condition in conditions)
    return Decision(
        outcome="promote" if promoted else "refuse",
        reasons=tuple(condition.sentence for condition in conditions if condition.holds == promoted),
        num_draft_tokens=num_draft_tokens,
        prompts=prompts,
        texts=len(texts),
        tokens=tokens,
        champion_length=overall.champion,
        candidate_length=overall.candidate,
        difference=overall.difference,
        ci_low=overall.low,
        ci_high=overall.high,
        p_value=test.p_value,
        alpha=alpha,
        exact=test.exact,
        sources=sources,
        champion_forecast=before,
        candidate_forecast=after,
    )


def _columns(texts: Sequence[ScoredText], least: int) -> _Columns:
    """The texts as arrays, with rounds for K = 1 to `least` or further."""
    if len({len(rounds) for text in texts for rounds in (text.champion_rounds, text.candidate_rounds)}) != 1:
        raise ValueError("rounds go up to different K: expected the same for every text and both drafts")
    columns = _Columns(
        groups=np.array([text.group for text in texts], dtype=object),
        sources=np.array([text.source for text in texts], dtype=object),
        tokens=np.array([text.tokens for text in texts], dtype=np.float64),
        champion=np.array([text.champion_rounds for text in texts], dtype=np.float64),
        candidate=np.array([text.candidate_rounds for text in texts], dtype=np.float64),
    )
    if columns.champion.shape[1] < least:
        raise ValueError(f"rounds go up to K = {columns.champion.shape[1]}: expected {least}")
    for name in ("tokens", "champion", "candidate"):
        values = getattr(columns, name)
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} has a number that is not positive and finite: expected tokens and rounds above 0")
    return columns


def _compare(columns: _Columns, k: int, level: float, seed: int) -> _Comparison:
    """Both acceptance lengths at K = k, and their paired difference."""
    champion, candidate = columns.champion[:, k - 1], columns.candidate[:, k - 1]
    interval = paired_ratio_difference_interval(
        columns.tokens, champion, columns.tokens, candidate, columns.groups.tolist(), seed=seed, level=level
    )
    lengths = [float(columns.tokens.sum() / rounds.sum()) for rounds in (champion, candidate)]
    return _Comparison(interval.groups, lengths[0], lengths[1], lengths[1] - lengths[0], interval.low, interval.high)


def _check_sources(columns: _Columns, k: int, settings: config.Gate, seed: int) -> tuple[SourceCheck, ...]:
    """Every source by itself, in order of name."""
    return tuple(
        _check_source(source, _only(columns, source), k, settings, seed)
        for source in sorted(set(columns.sources.tolist()))
    )


def _only(columns: _Columns, source: str) -> _Columns:
    """The texts of one source."""
    kept = columns.sources == source
    return _Columns(*(getattr(columns, name)[kept] for name in _Columns.__dataclass_fields__))


def _check_source(source: str, columns: _Columns, k: int, settings: config.Gate, seed: int) -> SourceCheck:
    """One source; the bound reads the interval of candidate minus champion from below."""
    found = _compare(columns, k, ONE_SIDED, seed)
    upper = None if found.low is None else 0.0 - found.low
    judged = found.prompts >= settings.min_heldout_prompts
    return SourceCheck(
        source=source,
        prompts=found.prompts,
        champion_length=found.champion,
        candidate_length=found.candidate,
        drop=found.champion - found.candidate,
        drop_upper=upper,
        judged=judged,
        ok=not judged or (upper is not None and upper < settings.max_drop),
    )


def _forecast(tokens: FloatArray, rounds: FloatArray, costs: Costs) -> Forecast:
    """The best K by the acceptance lengths over all texts, and the speed-up there."""
    lengths = {k: float(tokens.sum() / rounds[:, k - 1].sum()) for k in range(1, len(costs.t_target))}
    t_plain = costs.t_target[0]
    best = best_k(lengths, costs.t_draft, t_plain, dict(enumerate(costs.t_target)))
    speed_up = forecast(lengths.get(best, 1.0), costs.t_draft, t_plain, costs.t_target[best], best)
    return Forecast(best, speed_up)


def _accepts_more(found: _Comparison, test: SignFlip, alpha: float, attempt: int) -> _Condition:
    holds = test.p_value <= alpha
    change = found.candidate / found.champion - 1.0
    lengths = f"{abs(change):.1%} {'fewer' if change < 0.0 else 'more'} tokens a round"
    lengths += f" ({found.candidate:.3f} against {found.champion:.3f}) over {found.prompts} held-out prompts"
    verdict = "more than chance labels give" if holds else "no more than chance labels may give"
    sign = "<=" if holds else ">"
    return _Condition(holds, f"{lengths}: {verdict}, p = {test.p_value:.3g} {sign} {alpha:.3g} at attempt {attempt}")


def _no_source_loses(sources: Sequence[SourceCheck], max_drop: float) -> list[_Condition]:
    return [_source_holds(check, max_drop, alone=len(sources) == 1) for check in sources if check.judged]


def _source_holds(check: SourceCheck, max_drop: float, alone: bool) -> _Condition:
    upper = check.drop_upper
    assert upper is not None  # a judged source has two prompts or more
    if upper < 0.0:
        bound = f"gains at least {-upper:.3f} tokens a round (95%)"
    else:
        verdict = "below" if check.ok else "not below"
        bound = f"may lose up to {upper:.3f} tokens a round (95%), {verdict} {max_drop:g}"
    lengths = f"{check.candidate_length:.3f} against {check.champion_length:.3f} over {check.prompts} prompts"
    return _Condition(check.ok, f"source {check.source} {bound}" + ("" if alone else f": {lengths}"))


def _no_slower(champion: Forecast, candidate: Forecast) -> _Condition:
    holds = candidate.speed_up >= champion.speed_up
    if champion.best_k == candidate.best_k == 0:
        return _Condition(holds, "with either draft no draft length is forecast to beat plain decoding on this machine")
    verdict = "does not fall" if holds else "falls"
    ours, theirs = (f"{found.speed_up:.3f} x plain at K = {found.best_k}" for found in (candidate, champion))
    return _Condition(holds, f"the forecast speed-up {verdict}: {ours} against {theirs}")
