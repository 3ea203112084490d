"""The speed benchmark: what speculation gains over none, by each decoder, and what draftloop gains over mlx-lm.

Two ratios that are never mixed. `speed_up` is over the same decoder at K = 0, on the same weights: it is what
speculation gains. `over_stock` is draftloop's tokens/s over those of mlx-lm's public call at the same K: it is what the
decoder gains. The forecast is of the first: it divides by draftloop's own plain step. How each is timed is in
`timed_decoding`; the adapter is merged for all, as far as it is for `generate`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from ..config import SAMPLING, Rule
from ..decoding.decoder import Settings
from ..decoding.draft_length import AdaptiveDraftLength, Experience, LatencyProfile
from ..models.pair import Pair
from . import latency as costs
from .benchmark import accepted
from .estimator import forecast, total
from .latency_profiles import Advice
from .scoring import score_carried
from .timed_decoding import OURS, STOCK, TimedPass, Way, take_turns


@dataclass(frozen=True)
class SpeedRow:
    """One way over all prompts.

    Attributes:
        way: which.
        tokens: emitted in all passes over the prompts that count; each has a seed of its own.
        length: acceptance length; None where nothing is drafted.
        passes: tokens per second of each.
        tokens_per_second: median of the passes.
        spread: half the range of the middle half of them, over the median; None for one pass.
        speed_up: over the same decoder at K = 0: median over the passes of the ratio within one pass.
        over_stock: over mlx-lm at the same K, likewise; None for its own rows, and where it was not run at that K.
        forecast: of `speed_up`, from the latency profile and the estimated length; None where there is none.
    """

    way: Way
    tokens: int
    length: float | None
    passes: tuple[float, ...]
    tokens_per_second: float
    spread: float | None
    speed_up: float
    over_stock: float | None
    forecast: float | None


@dataclass(frozen=True)
class SpeedReport:
    """Measurements and the advice that follows; `experience` of each rule is of its row with adaptive draft length."""

    rows: list[SpeedRow]
    costs: LatencyProfile
    advice: Advice
    experience: dict[Rule, Experience]


def measure_speed(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    rules: Sequence[Rule],
    lengths: Sequence[int],
    stock_lengths: Sequence[int],
    repeats: int,
    on_text: Callable[[], None] = lambda: None,
    on_timed: Callable[[int, int], None] = lambda _done, _of: None,
) -> SpeedReport:
    """Time every way.

    Args:
        pair: the models, the draft with the adapter in use.
        prompts: tokens of each; all leave room for `max_tokens` and the longest round.
        settings: the sampler with the run's seed, max_tokens, and as `num_draft_tokens` the greatest adaptive K.
        rules: that fit the temperature.
        lengths: K >= 1 of draftloop; K = 0 is always run.
        stock_lengths: K >= 1 of mlx-lm; where there is one, K = 0 is run too.
        repeats: passes over the prompts that count; one before them does not.
        on_text: called after each prompt of each way.
        on_timed: before that, of the latency profile; as `latency.measure_latency` says.
    """
    most = max(*lengths, settings.num_draft_tokens)
    ways = [Way(STOCK, None, k) for k in ((0, *stock_lengths) if stock_lengths else ())]
    ways += [Way(OURS, None, 0), *(Way(OURS, rule, k) for rule, k in product(rules, lengths))]
    ways += [Way(OURS, rule, None) for rule in rules]
    with pair.merged():
        greedy = settings.sampler.temperature == 0
        measured = costs.measure_latency(pair, most, costs.CAREFUL, on_timed, greedy=greedy)
        # One for all outputs of a rule: each goes on from the experience of those before it, as in `generate`.
        policies = {rule: AdaptiveDraftLength(measured, settings.num_draft_tokens) for rule in rules}
        passes = take_turns(pair, prompts, settings, ways, repeats + 1, policies, on_text)
        generations = passes[Way(OURS, rules[0], lengths[0])][0].generations
        scores = {rule: score_carried(pair, generations, rule) for rule in rules}
    speeds = {way: tuple(one.tokens / one.seconds for one in all_[1:]) for way, all_ in passes.items()}
    rows = []
    for way, all_ in passes.items():
        promised = None  # the speed-up that the latency profile and the estimated acceptance promise
        if way.by == OURS and way.rule is not None and (k := way.num_draft_tokens) is not None:
            length = total(accepted(one, way.rule, k) for one in scores[way.rule]).acceptance_length
            promised = forecast(length, measured.t_draft, measured.t_target[0], measured.t_target[k], k)
        stock = speeds.get(Way(STOCK, None, way.num_draft_tokens)) if way.by == OURS else None
        rows.append(_row(way, all_[1:], speeds[way], speeds[Way(way.by, None, 0)], stock, promised))
    experience = {rule: policy.experience for rule, policy in policies.items()}
    return SpeedReport(rows, measured, _advice(rows), experience)


def _advice(rows: Sequence[SpeedRow]) -> Advice:
    """The fastest fixed K of ours, the smallest of equals, 0 among them; the rule is that of the fastest K above 0."""
    plain, *drafting = [row for row in rows if row.way.by == OURS and row.way.num_draft_tokens is not None]
    fastest = max(drafting, key=lambda row: row.speed_up)
    best = max(plain, fastest, key=lambda row: row.speed_up)
    rule = fastest.way.rule if fastest.way.rule in SAMPLING else None
    return Advice(best.way.num_draft_tokens or 0, rule, best.speed_up)


def _row(
    way: Way,
    passes: Sequence[TimedPass],
    speeds: Sequence[float],
    plain: Sequence[float],
    stock: Sequence[float] | None,
    forecasted: float | None,
) -> SpeedRow:
    tokens, rounds = (sum(values) for values in zip(*((one.tokens, one.rounds) for one in passes), strict=True))
    return SpeedRow(
        way=way,
        tokens=tokens,
        length=None if way.num_draft_tokens == 0 else tokens / rounds,
        passes=tuple(speeds),
        tokens_per_second=statistics.median(speeds),
        spread=relative_spread(speeds),
        speed_up=_median_ratio(speeds, plain),
        over_stock=None if stock is None else _median_ratio(speeds, stock),
        forecast=forecasted,
    )


def relative_spread(values: Sequence[float]) -> float | None:
    """Half the range of the middle half of some numbers over their median; None for one, which has no spread."""
    if len(values) < 2:
        return None
    low, median, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / median


def _median_ratio(speeds: Sequence[float], others: Sequence[float]) -> float:
    """Within each pass, so that what slows a whole pass slows both."""
    return statistics.median(speed / other for speed, other in zip(speeds, others, strict=True))
