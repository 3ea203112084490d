"""What speculation gains, and what draftloop gains over mlx-lm, embedded pair: python benchmarks/speed_decoding.py

It is `benchmark speed` on both domains at two temperatures, with an adapter that the defaults trained on failures of
both; of both domains the lower figure counts. *Speculation* is draftloop at K over draftloop at K = 0. *Against stock*
is draftloop over the public call of mlx-lm, on the same weights. The two are never mixed.

A figure is a ratio pass by pass, its mean and Student's interval. Where the best of several K and rules is meant, the
other passes say which that is in a pass: the best of many in the same pass is also the luckiest.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import results
import speed_world
from results import Figure
from scipy.special import stdtrit

from draftloop import reference
from draftloop.cli.progress import ProgressBar
from draftloop.cli.tables import print_table
from draftloop.config import Rule, Speculative
from draftloop.decoding.generate import decoding_settings
from draftloop.evaluation.throughput import SpeedReport, SpeedRow, measure_speed
from draftloop.evaluation.timed_decoding import OURS, STOCK, Decoder, Way

TEMPERATURES = (0.8, 0.0)
LENGTHS = (1, 2, 3, 4)
TOKENS, PROMPTS, REPEATS = 96, 6, 6
LEVEL = 0.95


@dataclass(frozen=True)
class Ratio:
    """Tokens a second over others, pass by pass: the mean, and the ends of Student's interval at LEVEL."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], others: Sequence[float]) -> Ratio:
        """At least two passes of each."""
        ratios = [one / other for one, other in zip(ours, others, strict=True)]
        half = float(stdtrit(len(ratios) - 1, (1 + LEVEL) / 2)) * statistics.stdev(ratios) / len(ratios) ** 0.5
        mean = statistics.mean(ratios)
        return cls(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Keeping:
    """How the adaptive draft length keeps up with the best fixed one. It drafts under the rule of that one.

    Attributes:
        best: rule and K that were most often the best one.
        over_fixed: over the best fixed K, 0 among them.
        over_zero: over K = 0.
    """

    best: Way
    over_fixed: Ratio
    over_zero: Ratio

    @classmethod
    def of(cls, report: SpeedReport) -> Keeping:
        """At least three passes."""
        fixed = _rows(report, OURS)
        adaptive = {
            row.way.rule: row.passes for row in report.rows if row.way.by == OURS and row.way.num_draft_tokens is None
        }
        best = best_by_the_others(fixed)
        speeds = [adaptive[row.way.rule or next(iter(adaptive))][number] for number, row in enumerate(best)]
        return cls(
            statistics.mode(row.way for row in best),
            Ratio.of(speeds, _passes(best)),
            Ratio.of(speeds, _row_of(report, OURS, 0).passes),
        )


def best_by_the_others(rows: Sequence[SpeedRow]) -> list[SpeedRow]:
    """Of each pass, the row that is the fastest by the median of all other passes."""
    numbers = range(len(rows[0].passes))
    return [max(rows, key=lambda row: statistics.median(_without(row.passes, number))) for number in numbers]


def main() -> None:
    given = speed_world.options(__doc__).parse_args()
    prompts, repeats = (2, 3) if given.quick else (PROMPTS, REPEATS)
    pair = speed_world.trained_pair(given.adapter, given.quick)
    reports: dict[tuple[float, str], SpeedReport] = {}
    for temperature in TEMPERATURES:
        rules: list[Rule] = ["rejection", "block"] if temperature else ["greedy"]
        config = Speculative(temperature=temperature, max_tokens=TOKENS, rule=rules[0])
        settings = replace(decoding_settings(config), num_draft_tokens=max(LENGTHS))
        for domain in reference.DOMAINS:
            ids = speed_world.prompt_ids(pair, domain, prompts)
            ways = 2 + len(LENGTHS) + len(rules) * (len(LENGTHS) + 1)
            with ProgressBar(f"{domain}, temperature {temperature:g}", (repeats + 1) * ways * len(ids)) as progress:
                reports[temperature, domain] = measure_speed(
                    pair, ids, settings, rules, LENGTHS, LENGTHS, repeats, lambda: progress.advance(1)
                )
    keeping = {key: Keeping.of(report) for key, report in reports.items()}
    rows = [_to_json(t, domain, row) for (t, domain), report in reports.items() for row in report.rows]
    kept = [_kept_to_json(t, domain, one) for (t, domain), one in keeping.items()]
    figures = list(find_figures(reports, keeping))
    shown = [{name: value for name, value in row.items() if name != "passes"} for row in rows]
    for table in (shown, kept):
        print_table(list(table[0]), [list(row.values()) for row in table])
    print_table(["figure", "measured", "at least"], [[f.figure, f"{f.value:.3f}", f.at_least or ""] for f in figures])
    if not given.quick:
        conditions = {
            "pair": "embedded",
            "adapter": speed_world.described(given.adapter),
            "prompts": prompts,
            "max_tokens": TOKENS,
            "repeats": REPEATS,
        }
        costs = {f"{domain}, {t:g}": asdict(report.costs) for (t, domain), report in reports.items()}
        results.write("speed_decoding", conditions, figures, rows=rows, keeping=kept, costs=costs)


def find_figures(
    reports: dict[tuple[float, str], SpeedReport], keeping: dict[tuple[float, str], Keeping]
) -> list[Figure]:
    """Each the lower one of both domains."""

    def lower(what: str, ratios: Callable[[float, str], Ratio], t: float, at_least: float | None = None) -> Figure:
        found = min((ratios(t, domain) for domain in reference.DOMAINS), key=lambda ratio: ratio.mean)
        return Figure(f"T {t:g}, {what}", found.mean, "x", at_least=at_least, interval=(found.low, found.high))

    def speculation(t: float, domain: str) -> Ratio:
        report = reports[t, domain]
        return Ratio.of(_passes(best_by_the_others(_drafting(report, OURS))), _row_of(report, OURS, 0).passes)

    def each_at_its_best(t: float, domain: str) -> Ratio:
        ours, stock = (_passes(best_by_the_others(_drafting(reports[t, domain], by))) for by in (OURS, STOCK))
        return Ratio.of(ours, stock)

    def both_at(k: int) -> Callable[[float, str], Ratio]:
        def ratio(t: float, domain: str) -> Ratio:
            ours = [row for row in _rows(reports[t, domain], OURS) if row.way.num_draft_tokens == k]
            return Ratio.of(_passes(best_by_the_others(ours)), _row_of(reports[t, domain], STOCK, k).passes)

        return ratio

    def keeps_up(t: float, domain: str) -> Ratio:
        return keeping[t, domain].over_fixed

    best = "draftloop over mlx-lm's speculation, each at its best K"
    return [
        lower("speculation: the best K over K = 0", speculation, 0.8, 1.15),
        lower("speculation: the best K over K = 0", speculation, 0.0, 1.3),
        lower(best, each_at_its_best, 0.8, 1.35),
        lower("the same, both at K = 4", both_at(4), 0.8, 1.6),
        lower(best, each_at_its_best, 0.0),
        lower("draftloop over mlx-lm, both at K = 0", both_at(0), 0.8),
        lower("draftloop over mlx-lm, both at K = 0", both_at(0), 0.0),
        lower("adaptive K over the best fixed K", keeps_up, 0.8, 0.97),
        lower("adaptive K over the best fixed K", keeps_up, 0.0, 0.97),
    ]


def _rows(report: SpeedReport, by: Decoder) -> list[SpeedRow]:
    """Those of a fixed K."""
    return [row for row in report.rows if row.way.by == by and row.way.num_draft_tokens is not None]


def _drafting(report: SpeedReport, by: Decoder) -> list[SpeedRow]:
    return [row for row in _rows(report, by) if row.way.num_draft_tokens]


def _row_of(report: SpeedReport, by: Decoder, k: int) -> SpeedRow:
    """The only one of so many draft tokens."""
    (found,) = [row for row in _rows(report, by) if row.way.num_draft_tokens == k]
    return found


def _passes(best: Sequence[SpeedRow]) -> list[float]:
    """Of each pass, what its own row took."""
    return [row.passes[number] for number, row in enumerate(best)]


def _without(values: Sequence[float], number: int) -> list[float]:
    return [*values[:number], *values[number + 1 :]]


def _kept_to_json(temperature: float, domain: str, one: Keeping) -> dict[str, Any]:
    return {
        "temperature": temperature,
        "domain": domain,
        "best_rule": one.best.rule or "",
        "best_K": one.best.num_draft_tokens,
        "adaptive_over_best": round(one.over_fixed.mean, 3),
        "low": round(one.over_fixed.low, 3),
        "high": round(one.over_fixed.high, 3),
        "adaptive_over_zero": round(one.over_zero.mean, 3),
    }


def _to_json(temperature: float, domain: str, row: SpeedRow) -> dict[str, Any]:
    length = row.way.num_draft_tokens
    assert row.spread is not None  # there are several passes
    return {
        "temperature": temperature,
        "domain": domain,
        "by": row.way.by,
        "rule": row.way.rule or "",
        "K": "adaptive" if length is None else length,
        "tokens_per_second": round(row.tokens_per_second, 1),
        "spread": round(row.spread, 3),
        "acceptance_length": None if row.length is None else round(row.length, 3),
        "over_zero": round(row.speed_up, 3),
        "forecast": None if row.forecast is None else round(row.forecast, 3),
        "over_stock": None if row.over_stock is None else round(row.over_stock, 3),
        "passes": [round(speed, 1) for speed in row.passes],
    }


if __name__ == "__main__":
    main()
