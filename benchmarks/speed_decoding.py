"""Decoding speed on the embedded pair against what mlx-lm does: python benchmarks/speed_decoding.py

It is `benchmark speed` on both domains at two temperatures, with an adapter that the defaults trained on failures of
both; of both domains the lower figure counts. Whether the draft length that pays keeps up with fixed ones is a matter
of 3%, so these take more turns, without mlx-lm: see `Keeping`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import results
import speed_world
from results import Figure

from draftloop import reference
from draftloop.cli.progress import ProgressBar
from draftloop.cli.tables import print_table
from draftloop.config import Rule, Speculative
from draftloop.decoding.generate import decoding_settings
from draftloop.evaluation.throughput import OURS, PLAIN, STOCK, SpeedReport, SpeedRow, Way, measure_speed

TEMPERATURES = (0.8, 0.0)
LENGTHS = (1, 2, 3, 4, 6)
TOKENS, PROMPTS, REPEATS, KEEPING_REPEATS = 96, 10, 3, 8


@dataclass(frozen=True)
class Keeping:
    """How the draft length that pays keeps up with the best fixed one, turn by turn.

    Which K and rule are best is asked of the other turns: the best of many in the same turn is also the luckiest. What
    pays is drafted under that rule.

    Attributes:
        best: rule and K that were most often the best one.
        over_fixed: tokens a second over those of the best fixed K, median over the turns.
        over_plain: over those of plain decoding.
        standard_error: of the mean of `over_fixed` over the turns.
    """

    best: Way
    over_fixed: float
    over_plain: float
    standard_error: float

    @classmethod
    def of(cls, report: SpeedReport) -> Keeping:
        """At least two turns."""
        fixed, plain = _fixed(report.rows, OURS), report.rows[0].passes
        pays = {row.way.rule: row.passes for row in report.rows if row.way.num_draft_tokens is None}
        best, over_fixed, over_plain = [], [], []
        for turn, bare in enumerate(plain):
            one = max(fixed, key=lambda row: statistics.median(_without(row.passes, turn)))
            best.append(one.way)
            over_fixed.append(pays[one.way.rule][turn] / one.passes[turn])
            over_plain.append(pays[one.way.rule][turn] / bare)
        error = statistics.stdev(over_fixed) / len(over_fixed) ** 0.5
        return cls(statistics.mode(best), statistics.median(over_fixed), statistics.median(over_plain), error)


def main() -> None:
    given = speed_world.options(__doc__).parse_args()
    prompts = 2 if given.quick else PROMPTS
    repeats = (2, 2) if given.quick else (REPEATS, KEEPING_REPEATS)
    pair, stock = speed_world.trained_pairs(given.adapter, given.quick)
    reports: dict[tuple[float, str], SpeedReport] = {}
    keeping: dict[tuple[float, str], Keeping] = {}
    for temperature in TEMPERATURES:
        rules: list[Rule] = ["rejection", "block"] if temperature else ["greedy"]
        config = Speculative(temperature=temperature, max_tokens=TOKENS, rule=rules[0])
        settings = replace(decoding_settings(config), num_draft_tokens=max(LENGTHS))
        for domain in reference.DOMAINS:
            ids = speed_world.prompt_ids(pair, domain, prompts)
            name, ways = f"{domain}, temperature {temperature:g}", 1 + len(rules) * (len(LENGTHS) + 1)
            turns = (repeats[0] + 1) * (ways + len(LENGTHS)) + (repeats[1] + 1) * ways
            with ProgressBar(name, turns * len(ids)) as progress:
                measure = partial(measure_speed, pair, stock, ids, settings, rules, LENGTHS)
                count = partial(progress.advance, 1)
                reports[temperature, domain] = measure(LENGTHS, repeats[0], count)
                keeping[temperature, domain] = Keeping.of(measure((), repeats[1], count))
    rows = [_to_json(t, domain, row) for (t, domain), report in reports.items() for row in report.rows]
    kept = [_kept_to_json(t, domain, one) for (t, domain), one in keeping.items()]
    figures = list(find_figures(reports, keeping))
    for table in (rows, kept):
        print_table(list(table[0]), [list(row.values()) for row in table])
    print_table(["figure", "measured", "at least"], [[f.figure, f"{f.value:.3f}", f.at_least] for f in figures])
    if not given.quick:
        conditions = {
            "pair": "embedded",
            "adapter": speed_world.described(given.adapter),
            "prompts": prompts,
            "max_tokens": TOKENS,
            "repeats": REPEATS,
            "repeats of what pays": KEEPING_REPEATS,
        }
        costs = {f"{domain}, {t:g}": asdict(report.costs) for (t, domain), report in reports.items()}
        results.write("speed_decoding", conditions, figures, rows=rows, keeping=kept, costs=costs)


def find_figures(
    reports: dict[tuple[float, str], SpeedReport], keeping: dict[tuple[float, str], Keeping]
) -> list[Figure]:
    """Each the lower one of both domains."""

    def lower(temperature: float, figure: Callable[[SpeedReport], float]) -> float:
        return min(figure(reports[temperature, domain]) for domain in reference.DOMAINS)

    def over_stock(report: SpeedReport) -> float:
        return _best(report, OURS) / _best(report, STOCK)

    def at_four(report: SpeedReport) -> float:
        return _best(report, OURS, 4) / _best(report, STOCK, 4)

    def over_plain(report: SpeedReport) -> float:
        return _best(report, OURS)

    figures = [
        Figure("T 0.8, ours over stock mlx-lm, each at its best K", lower(0.8, over_stock), "x", at_least=1.4),
        Figure("T 0.8, the same, both at K = 4", lower(0.8, at_four), "x", at_least=1.6),
        Figure("T 0, ours over stock mlx-lm, each at its best K", lower(0.0, over_stock), "x", at_least=1.1),
        Figure("T 0.8, ours over plain decoding", lower(0.8, over_plain), "x", at_least=1.3),
        Figure("T 0, ours over plain decoding", lower(0.0, over_plain), "x", at_least=1.3),
    ]
    for temperature in TEMPERATURES:
        found = [keeping[temperature, domain] for domain in reference.DOMAINS]
        what = f"T {temperature:g}, K that pays over"
        figures += [
            Figure(f"{what} the best fixed K", min(one.over_fixed for one in found), "x", at_least=0.97),
            Figure(f"{what} plain decoding", min(one.over_plain for one in found), "x", at_least=0.97),
        ]
    return figures


def _best(report: SpeedReport, by: str, k: int | None = None) -> float:
    """The largest speed-up over plain decoding of a fixed K, or of this one."""
    return max(row.speed_up for row in _fixed(report.rows, by) if k in (None, row.way.num_draft_tokens))


def _fixed(rows: Sequence[SpeedRow], by: str) -> list[SpeedRow]:
    return [row for row in rows if row.way.by == by and row.way.num_draft_tokens is not None]


def _without(values: Sequence[float], turn: int) -> list[float]:
    return [*values[:turn], *values[turn + 1 :]]


def _kept_to_json(temperature: float, domain: str, one: Keeping) -> dict[str, Any]:
    return {
        "temperature": temperature,
        "domain": domain,
        "best_rule": one.best.rule,
        "best_K": one.best.num_draft_tokens,
        "pays_over_best": round(one.over_fixed, 3),
        "standard_error": round(one.standard_error, 3),
        "pays_over_plain": round(one.over_plain, 3),
    }


def _to_json(temperature: float, domain: str, row: SpeedRow) -> dict[str, Any]:
    length = row.way.num_draft_tokens
    return {
        "temperature": temperature,
        "domain": domain,
        "by": row.way.by,
        "rule": row.way.rule or "",
        "K": "pays" if length is None else length,
        "tokens_per_second": round(row.tokens_per_second, 1),
        "spread": round(row.spread, 3),
        "tokens_a_round": None if row.length is None or row.way.by == PLAIN else round(row.length, 3),
        "over_plain": round(row.speed_up, 3),
        "forecast": None if row.forecast is None else round(row.forecast, 3),
    }


if __name__ == "__main__":
    main()
