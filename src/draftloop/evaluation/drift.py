"""Drift: test whether a source's acceptance has fallen for good, by Page-Hinkley. Knows no model, log, file or clock.

One value per generation, its mean acceptance per position: tokens of one output are not independent of each other. With
μ the mean of n reference values and δ the tolerance, m_t = Σ_{i≤t} (μ − δ − x_i) and PH_t = m_t − min_{0≤s≤t} m_s,
m_0 = 0 (Page 1954). PH rises with a fall alone, and where it last was 0 the fall is taken to begin.

The threshold is the (1 − rate) quantile of the highest PH over `horizon` generations of an unchanged source. Most of it
is the error of μ, which adds up with every generation: with thresholds of streams drawn about a fixed μ one watch in
five raised a false alarm, n = 30, where 1% was asked for. With a bootstrap that draws the reference again too it was
1.2% on normal values, 1% to 1.8% on the embedded pair's, 3% to 8% on values skewed to the left and 33% where one value
in thirty is far lower, for it never draws anything worse than the worst of 30. Student's widening, smoothing and
studentising it mended the first of these and not the last.

So futures are drawn from what exchangeability says of them. The next of n + 1 values is as likely to have one rank as
another, so the gaps between the sorted reference values have Dirichlet(1, …, 1) masses (Hill 1968; a distribution for
inference in Cui and Hannig 2019), and a value is uniform within its gap. To the safe side the lowest gap reaches
down to 0 and nothing lies above the highest value seen (as in Gaffke 2005). The realised rate is then below the chosen
one for normal values and those skewed to the left, and at it for values skewed to the right. The price is that alarms
come 1.4 to 1.8 times as late as that bootstrap's with 30 reference values, 1.1 to 1.4 times with 100.
`benchmarks/drift.py` measures both.

A watch that goes on beyond the horizon begins anew after every `horizon` generations, m_0 = 0, with reference and
threshold kept. The rate is per horizon: over k horizons the chance of any false alarm is at most k times it. Never
starting anew, an error of μ would add up without bound: at 1%, 11% to 18% had raised an alarm after five horizons.

What this leaves out: prompts that come in runs of a kind scatter more than exchangeable ones. And where values are 0 or
1 and nothing between, and n = 30 happened to see the commoner one alone, too little is made of the other: 3.5% at 1%.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from .. import config
from ..data.records import GroupOf, Record, Split, own_group
from ..data.replay import generation_acceptance
from .estimator import FloatArray

Kind = Literal["drift", "fall"]

DRAWS = 2000
FALL_REFERENCE = 100  # latest generations of the previous draft
_CELLS = 1 << 19  # values drawn at a time


class StreamKey(NamedTuple):
    """What makes a stream of its own; another temperature is no drift."""

    target: str
    draft: str
    source: str
    rule: str
    temperature: float
    top_p: float
    min_p: float
    top_k: int


@dataclass(frozen=True, slots=True)
class LoggedGeneration:
    """A logged generation as drift sees it.

    Attributes:
        id: its record's.
        key: of its stream.
        group: its prompt group, near-duplicates joined.
        adapter: the draft's adapter version, None for the bare draft.
        acceptance: mean acceptance per position, in [0, 1].
        split: its record's; None where its prompt is near two, and it is used in neither.
        unseen: whether its prompt had no part in the training of its draft, as far as is known.
        came_before: whether generations of its prompt were dropped from the log: nobody knows when it came first.
    """

    id: str
    key: StreamKey
    group: str
    adapter: str | None
    acceptance: float
    split: Split | None
    unseen: bool = True
    came_before: bool = False


@dataclass(frozen=True, slots=True)
class StreamCheck:
    """The check of one stream.

    Attributes:
        source: as reports call it; where a source has several streams, with what they differ in.
        kind: `drift` is against this champion's own beginning, `fall` against the acceptance of the previous draft.
        reference: mean acceptance per position that was usual.
        recent: its mean since the estimated change, or without an alarm of the latest generations, as many as the
            settings take for a reference; None where nothing was watched.
        generations: watched, after the reference.
        statistic: highest Page-Hinkley value so far; above the threshold exactly where there is an alarm.
        threshold: of the statistic.
        alarm_at: index in the watched stream, from 0, of the generation with which it first rose above; None without
            an alarm.
        change_at: index of the first generation of the fall, as estimated; None without an alarm.
    """

    source: str
    kind: Kind
    reference: float
    recent: float | None
    generations: int
    statistic: float
    threshold: float
    alarm_at: int | None
    change_at: int | None = None

    @property
    def alarm(self) -> bool:
        """Whether acceptance is taken to have fallen; it stays so, whatever came after."""
        return self.alarm_at is not None


def generation_of(record: Record, group_of: GroupOf = own_group) -> LoggedGeneration:
    """A record as drift sees it. Raises ValueError where it has no output."""
    s, pair = record.sampler, record.pair
    transforms = (float(s.temperature), float(s.top_p), float(s.min_p), s.top_k)
    key = StreamKey(pair.target, pair.draft, record.source, record.rule, *transforms)
    return LoggedGeneration(
        record.id, key, group_of(record), record.adapter, generation_acceptance(record), record.split
    )


def check_streams(
    generations: Sequence[LoggedGeneration],
    champion: str | None,
    before: Sequence[LoggedGeneration],
    settings: config.Drift,
    seed: int,
) -> list[StreamCheck]:
    """Check every stream of the champion against its own beginning and against the previous draft.

    Args:
        generations: since the champion took over, or since the last verdict, in the order of the log; those of another
            adapter are left out, and those of prompts that it was trained on, which flatter it.
        champion: its version, None for the bare draft.
        before: generations of the previous draft, in the order of the log; likewise.
        settings: rate, horizon, size of the reference, tolerance.
        seed: of the draws behind the thresholds.

    Returns:
        Alarms first, then by source. A stream that has no generation beyond its reference, and of which the previous
        draft left fewer generations than a reference takes, is not among them.
    """
    former = _streams(g for g in before if g.unseen)
    streams = _streams(g for g in generations if g.adapter == champion and g.unseen)
    checks = []
    for key, own in streams.items():
        source = _name(key, streams)
        first, rest = _values(own[: settings.reference]), _values(own[settings.reference :])
        if len(rest):
            checks.append(check_stream(first, rest, source=source, kind="drift", settings=settings, seed=seed))
        usual = _values(former.get(key, [])[-FALL_REFERENCE:])
        if len(usual) >= settings.reference:
            checks.append(check_stream(usual, _values(own), source=source, kind="fall", settings=settings, seed=seed))
    return sorted(checks, key=lambda check: (not check.alarm, check.source, check.kind))


def check_stream(
    reference: FloatArray, stream: FloatArray, *, source: str, kind: Kind, settings: config.Drift, seed: int
) -> StreamCheck:
    """Check one stream against its reference.

    Args:
        reference: (n,) acceptance per position of each generation, in [0, 1], 2 or more.
        stream: (t,) likewise, in the order of the log; none is fine.
        source: as reports call it.
        kind: what the reference is.
        settings: rate, horizon, tolerance.
        seed: of the draws behind the threshold.

    Raises:
        ValueError: a value is no acceptance, or the reference has fewer than 2.
    """
    _require_acceptances(reference, least=2)
    _require_acceptances(stream, least=0)
    mean = float(reference.mean())
    limit = threshold(reference, settings, seed)
    starts = range(0, len(stream), settings.horizon)
    statistics = [page_hinkley(stream[i : i + settings.horizon], mean, settings.tolerance) for i in starts]
    statistic = np.concatenate(statistics) if statistics else np.zeros(0)
    above = np.flatnonzero(statistic > limit)
    alarm_at = change_at = None
    if len(above):  # the fall began after the lowest m before the alarm, within the alarm's own horizon
        alarm_at = int(above[0])
        begin = alarm_at - alarm_at % settings.horizon
        lowest = np.flatnonzero(statistic[begin:alarm_at] == 0.0)
        change_at = begin + int(lowest[-1]) + 1 if len(lowest) else begin
    recent = stream[-settings.reference :] if change_at is None else stream[change_at:]
    return StreamCheck(
        source=source,
        kind=kind,
        reference=mean,
        recent=float(recent.mean()) if len(recent) else None,
        generations=len(stream),
        statistic=float(statistic.max(initial=0.0)),
        threshold=limit,
        alarm_at=alarm_at,
        change_at=change_at,
    )


def page_hinkley(stream: FloatArray, mean: float | FloatArray, tolerance: float) -> FloatArray:
    """PH_t for a fall (Page 1954, "Continuous inspection schemes", Biometrika 41).

    Args:
        stream: (..., t) values in order.
        mean: of the reference, one number or one per row.
        tolerance: δ, in the unit of the values; falls up to this are tolerated.

    Returns:
        (..., t), 0 or more; 0 where the sum is at its lowest.
    """
    m = np.cumsum(mean - tolerance - stream, axis=-1)
    lowest: FloatArray = np.minimum(np.minimum.accumulate(m, axis=-1), 0.0)
    return m - lowest


def threshold(reference: FloatArray, settings: config.Drift, seed: int) -> float:
    """The value that PH exceeds within the horizon at no more than the settings' rate, averaged over references.

    The same reference, settings and seed give the same number.

    Args:
        reference: (n,) acceptance per position of each generation, in [0, 1].
        settings: rate, horizon, tolerance.
        seed: of the draws.
    """
    values = tuple(np.sort(reference).tolist())
    return _threshold(values, settings.tolerance, settings.horizon, settings.false_alarm_rate, seed)


@functools.lru_cache(maxsize=256)
def _threshold(reference: tuple[float, ...], tolerance: float, horizon: int, rate: float, seed: int) -> float:
    values = np.array(reference)
    random = np.random.default_rng(seed)
    draws = max(DRAWS, math.ceil(1.0 / rate))
    at_once = max(1, _CELLS // (horizon + len(values)))
    highest = np.concatenate(
        [_highest(values, min(at_once, draws - done), tolerance, horizon, random) for done in range(0, draws, at_once)]
    )
    rank = math.ceil((draws + 1) * (1.0 - rate))  # so the watch itself, one more draw, exceeds it with at most the rate
    return float(np.sort(highest)[min(rank, draws) - 1])


def _highest(values: FloatArray, draws: int, tolerance: float, horizon: int, random: np.random.Generator) -> FloatArray:
    """(draws,) highest PH of streams of an unchanged source, given its sorted reference values (n,).

    Pólya's urn: a value falls into a gap with odds of one plus the values drawn into it before, which is the same as
    Dirichlet masses. PH_t = max(0, PH_{t−1} + μ − δ − x_t) is the definition said recursively.
    """
    edges = np.array([0.0, *values, values[-1]])
    gaps = len(edges) - 1  # n + 1
    urn = np.empty((gaps + horizon, draws), dtype=np.int32)
    urn[:gaps] = np.arange(gaps)[:, None]
    usual, widths, each = values.mean() - tolerance, np.diff(edges), np.arange(draws)
    statistic, highest = np.zeros(draws), np.zeros(draws)
    for filled in range(gaps, gaps + horizon):
        gap = urn[filled] = urn[random.integers(0, filled, draws), each]
        statistic = np.maximum(statistic + usual - (edges[gap] + widths[gap] * random.random(draws)), 0.0)
        highest = np.maximum(highest, statistic)
    return highest


def _streams(generations: Iterable[LoggedGeneration]) -> dict[StreamKey, list[LoggedGeneration]]:
    streams: dict[StreamKey, list[LoggedGeneration]] = {}
    for generation in generations:
        streams.setdefault(generation.key, []).append(generation)
    return streams


def _name(key: StreamKey, keys: Iterable[StreamKey]) -> str:
    """The source of a stream, with what tells it from the other streams of that source."""
    same = [other for other in keys if other.source == key.source]
    differing = [name for name in StreamKey._fields if len({getattr(other, name) for other in same}) > 1]
    said = [f"{name} {str(getattr(key, name))[:12]}" for name in differing]
    return f"{key.source} ({', '.join(said)})" if said else key.source


def _values(generations: Sequence[LoggedGeneration]) -> FloatArray:
    return np.array([generation.acceptance for generation in generations], dtype=np.float64)


def _require_acceptances(values: FloatArray, least: int) -> None:
    if values.ndim != 1 or len(values) < least:
        raise ValueError(f"found the shape {values.shape}: expected one row of {least} acceptances or more")
    if not ((values >= 0.0) & (values <= 1.0)).all():  # a NaN is neither
        raise ValueError("an acceptance is not from 0 to 1")
