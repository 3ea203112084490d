"""What speculation gains, and what draftloop gains over mlx-lm, embedded pair: python benchmarks/speed_decoding.py

It is `benchmark speed` on both domains at two temperatures, with an adapter that the defaults trained on failures of
both; of both domains the lower figure counts. *Speculation* is draftloop at K over draftloop at K = 0. *Against stock*
is draftloop over the public call of mlx-lm, on the same weights. The two are never mixed.
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
LENGTHS = (1, 2, 3, 4, 6)
TOKENS, PROMPTS, REPEATS = 96, 10, 8
LEVEL = 0.95


@dataclass(frozen=True)
class Keeping:
    """How the adaptive draft length keeps up with the best fixed one, pass by pass.

    Which K and rule are best in a pass is asked of the other passes: the best of many in the same pass is also the
    luckiest. The adaptive length drafts under that rule.

    Attributes:
        best: rule and K that were most often the best one.
        over_fixed: tokens a second over those of the best fixed K, mean over the passes.
        low, high: its interval at LEVEL, Student's over the passes.
        over_zero: tokens a second over those of K = 0, mean over the passes.
    """

    best: Way
    over_fixed: float
    low: float
    high: float
    over_zero: float

    @classmethod
    def of(cls, report: SpeedReport) -> Keeping:
        """At least three passes."""
        fixed = _rows(report, OURS)
        plain = next(row.passes for row in fixed if row.way.num_draft_tokens == 0)
        adaptive = {
            row.way.rule: row.passes for row in report.rows if row.way.by == OURS and row.way.num_draft_tokens is None
        }
        best, over_fixed, over_zero = [], [], []
        for number, bare in enumerate(plain):
            one = max(fixed, key=lambda row: statistics.median(_without(row.passes, number)))
            speed = adaptive[one.way.rule or next(iter(adaptive))][number]  # K = 0 has no rule
            best.append(one.way)
            over_fixed.append(speed / one.passes[number])
            over_zero.append(speed / bare)
        count = len(over_fixed)
        half = stdtrit(count - 1, (1 + LEVEL) / 2) * statistics.stdev(over_fixed) / count**0.5
        mean = statistics.mean(over_fixed)
        return cls(statistics.mode(best), mean, mean - float(half), mean + float(half), statistics.mean(over_zero))


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
    for table in (rows, kept):
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

    def lower(temperature: float, figure: Callable[[SpeedReport], float]) -> float:
        return min(figure(reports[temperature, domain]) for domain in reference.DOMAINS)

    def speculation(report: SpeedReport) -> float:
        return max(row.speed_up for row in _rows(report, OURS) if row.way.num_draft_tokens)

    def each_at_its_best(report: SpeedReport) -> float:
        ours, stock = (
            max((row for row in _rows(report, by) if row.way.num_draft_tokens), key=lambda row: row.tokens_per_second)
            for by in (OURS, STOCK)
        )
        return statistics.median(a / b for a, b in zip(ours.passes, stock.passes, strict=True))

    def both_at(k: int, report: SpeedReport) -> float:
        return max(row.over_stock or 0.0 for row in _rows(report, OURS) if row.way.num_draft_tokens == k)

    best = "mlx-lm's speculation, each at its best K"
    figures = [
        Figure("T 0.8, speculation: the best K over K = 0", lower(0.8, speculation), "x", at_least=1.15),
        Figure("T 0, speculation: the best K over K = 0", lower(0.0, speculation), "x", at_least=1.3),
        Figure(f"T 0.8, draftloop over {best}", lower(0.8, each_at_its_best), "x", at_least=1.35),
        Figure("T 0.8, the same, both at K = 4", lower(0.8, lambda report: both_at(4, report)), "x", at_least=1.6),
        Figure(f"T 0, draftloop over {best}", lower(0.0, each_at_its_best), "x"),
        Figure("T 0.8, draftloop over mlx-lm, both at K = 0", lower(0.8, lambda report: both_at(0, report)), "x"),
        Figure("T 0, draftloop over mlx-lm, both at K = 0", lower(0.0, lambda report: both_at(0, report)), "x"),
    ]
    for temperature in TEMPERATURES:
        worst = min((keeping[temperature, domain] for domain in reference.DOMAINS), key=lambda one: one.over_fixed)
        what = f"T {temperature:g}, adaptive K over the best fixed K"
        figures.append(Figure(what, worst.over_fixed, "x", at_least=0.97, interval=(worst.low, worst.high)))
    return figures


def _rows(report: SpeedReport, by: Decoder) -> list[SpeedRow]:
    """Those of a fixed K."""
    return [row for row in report.rows if row.way.by == by and row.way.num_draft_tokens is not None]


def _without(values: Sequence[float], number: int) -> list[float]:
    return [*values[:number], *values[number + 1 :]]


def _kept_to_json(temperature: float, domain: str, one: Keeping) -> dict[str, Any]:
    return {
        "temperature": temperature,
        "domain": domain,
        "best_rule": one.best.rule or "",
        "best_K": one.best.num_draft_tokens,
        "adaptive_over_best": round(one.over_fixed, 3),
        "low": round(one.low, 3),
        "high": round(one.high, 3),
        "adaptive_over_zero": round(one.over_zero, 3),
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
    }


if __name__ == "__main__":
    main()
