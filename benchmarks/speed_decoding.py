"""Decoding speed on the embedded pair against what mlx-lm does: python benchmarks/speed_decoding.py

It is `benchmark speed` on both domains at two temperatures, with an adapter that the defaults trained on failures of
both; of both domains the lower figure counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import results
import speed_world
from results import Figure

from draftloop import reference
from draftloop.cli.progress import Progress
from draftloop.cli.tables import print_table
from draftloop.config import Speculative
from draftloop.rule import Rule
from draftloop.speed import OURS, PLAIN, STOCK, Report, Row, measure_speed
from draftloop.text import decoding_settings

TEMPERATURES = (0.8, 0.0)
LENGTHS = (1, 2, 3, 4, 6)
TOKENS, PROMPTS, REPEATS = 96, 10, 3


def main() -> None:
    given = speed_world.options(__doc__).parse_args()
    prompts, repeats = (2, 2) if given.quick else (PROMPTS, REPEATS)
    pair, stock = speed_world.trained_pairs(given.adapter, given.quick)
    reports: dict[tuple[float, str], Report] = {}
    for temperature in TEMPERATURES:
        rules: list[Rule] = ["rejection", "block"] if temperature else ["greedy"]
        ways = 1 + len(LENGTHS) + len(rules) * (len(LENGTHS) + 1)
        config = Speculative(temperature=temperature, max_tokens=TOKENS, rule=rules[0])
        settings = replace(decoding_settings(config), num_draft_tokens=max(LENGTHS))
        for domain in reference.DOMAINS:
            ids = speed_world.prompt_ids(pair, domain, prompts)
            with Progress(f"{domain}, temperature {temperature:g}", ways * len(ids) * (repeats + 1)) as progress:
                count = partial(progress.advance, 1)
                reports[temperature, domain] = measure_speed(pair, stock, ids, settings, rules, LENGTHS, repeats, count)
    rows = [_to_json(t, domain, row) for (t, domain), report in reports.items() for row in report.rows]
    figures = list(find_figures(reports))
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    print_table(["figure", "measured", "at least"], [[f.figure, f"{f.value:.3f}", f.at_least] for f in figures])
    if not given.quick:
        conditions = {
            "pair": "embedded",
            "adapter": speed_world.described(given.adapter),
            "prompts": prompts,
            "max_tokens": TOKENS,
            "repeats": repeats,
        }
        costs = {f"{domain}, {t:g}": asdict(report.costs) for (t, domain), report in reports.items()}
        results.write("speed_decoding", conditions, figures, rows=rows, costs=costs)


def find_figures(reports: dict[tuple[float, str], Report]) -> list[Figure]:
    """Each the lower one of both domains."""

    def lower(temperature: float, figure: Callable[[Report], float]) -> float:
        return min(figure(reports[temperature, domain]) for domain in reference.DOMAINS)

    def over_stock(report: Report) -> float:
        return _best(report, OURS) / _best(report, STOCK)

    def at_four(report: Report) -> float:
        return _best(report, OURS, 4) / _best(report, STOCK, 4)

    def over_plain(report: Report) -> float:
        return _best(report, OURS)

    def policy(report: Report) -> float:
        return max(row.speed_up for row in report.rows if row.way.num_draft_tokens is None) / _best(report, OURS)

    def policy_over_plain(report: Report) -> float:
        return max(row.speed_up for row in report.rows if row.way.num_draft_tokens is None)

    return [
        Figure("T 0.8, ours over stock mlx-lm, each at its best K", lower(0.8, over_stock), "x", at_least=1.4),
        Figure("T 0.8, the same, both at K = 4", lower(0.8, at_four), "x", at_least=1.6),
        Figure("T 0, ours over stock mlx-lm, each at its best K", lower(0.0, over_stock), "x", at_least=1.1),
        Figure("T 0.8, ours over plain decoding", lower(0.8, over_plain), "x", at_least=1.3),
        Figure("T 0, ours over plain decoding", lower(0.0, over_plain), "x", at_least=1.3),
        Figure("T 0.8, K that pays over the best fixed K", lower(0.8, policy), "x", at_least=0.97),
        Figure("T 0, K that pays over the best fixed K", lower(0.0, policy), "x", at_least=0.97),
        Figure("T 0.8, K that pays over plain decoding", lower(0.8, policy_over_plain), "x", at_least=0.97),
        Figure("T 0, K that pays over plain decoding", lower(0.0, policy_over_plain), "x", at_least=0.97),
    ]


def _best(report: Report, by: str, k: int | None = None) -> float:
    """The largest speed-up over plain decoding of a fixed K, or of this one."""
    return max(row.speed_up for row in _fixed(report.rows, by) if k in (None, row.way.num_draft_tokens))


def _fixed(rows: Sequence[Row], by: str) -> list[Row]:
    return [row for row in rows if row.way.by == by and row.way.num_draft_tokens is not None]


def _to_json(temperature: float, domain: str, row: Row) -> dict[str, Any]:
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
