"""The adaptive draft length is compared with a fixed K that other passes chose, and with an interval over passes."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from draftloop.decoding.draft_length import LatencyProfile
from draftloop.evaluation.latency_profiles import Advice
from draftloop.evaluation.throughput import SpeedReport, SpeedRow
from draftloop.evaluation.timed_decoding import OURS, STOCK, Way


@pytest.fixture
def speed(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("speed_decoding")


def row(way: Way, *passes: float, **more: Any) -> SpeedRow:
    about = {"speed_up": 1.0, "over_stock": None, "forecast": None, **more}
    return SpeedRow(way, 100, None, passes, sorted(passes)[len(passes) // 2], 0.1, **about)


def report_of(*rows: SpeedRow) -> SpeedReport:
    costs = LatencyProfile(1e-3, (1e-3, 1e-3))
    return SpeedReport(list(rows), costs, Advice(1, None, 1.0), {})


def test_the_best_fixed_length_of_a_pass_is_chosen_by_the_other_passes(speed: ModuleType) -> None:
    report = report_of(
        row(Way(OURS, None, 0), 50, 50, 50, 50),
        row(Way(OURS, "rejection", 1), 100, 100, 100, 100),
        row(Way(OURS, "rejection", 2), 90, 90, 90, 200),  # lucky once
        row(Way(OURS, "rejection", None), 95, 95, 95, 95),
    )
    found = speed.Keeping.of(report)
    assert found.best == Way(OURS, "rejection", 1)
    assert found.over_fixed.mean == pytest.approx(0.95)  # in the last pass too, where the lucky one had 200
    assert found.over_zero.mean == pytest.approx(1.9)
    assert (found.over_fixed.low, found.over_fixed.high) == pytest.approx((0.95, 0.95))


def test_its_interval_is_students_over_the_passes(speed: ModuleType) -> None:
    report = report_of(
        row(Way(OURS, None, 0), 50, 50, 50),
        row(Way(OURS, "greedy", 1), 100, 100, 100),
        row(Way(OURS, "greedy", None), 90, 100, 110),
    )
    found = speed.Keeping.of(report).over_fixed
    assert found.mean == pytest.approx(1.0)
    assert found.high - 1.0 == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)  # t of two degrees of freedom
    assert 1.0 - found.low == pytest.approx(found.high - 1.0)


def test_the_adaptive_length_drafts_under_the_best_ones_rule(speed: ModuleType) -> None:
    report = report_of(
        row(Way(OURS, None, 0), 50, 50, 50),
        row(Way(OURS, "rejection", 4), 80, 80, 80),
        row(Way(OURS, "block", 4), 100, 100, 100),
        row(Way(OURS, "rejection", None), 70, 70, 70),
        row(Way(OURS, "block", None), 90, 90, 90),
    )
    assert speed.Keeping.of(report).over_fixed.mean == pytest.approx(0.9)


def test_the_lower_domain_counts_and_the_two_kinds_of_ratio_are_not_mixed(speed: ModuleType) -> None:
    def domain(ours: float, stock: float) -> SpeedReport:
        return report_of(
            row(Way(STOCK, None, 0), 40, 40, 40),
            row(Way(STOCK, None, 1), 2 * stock, 2 * stock, 2 * stock),
            row(Way(STOCK, None, 4), stock, stock, stock),
            row(Way(OURS, None, 0), 50, 50, 50),
            row(Way(OURS, "rejection", 4), ours, ours, ours),
            row(Way(OURS, "rejection", None), 45, 45, 45),
        )

    domains = {"prose": domain(60, 24), "code": domain(75, 50)}
    reports = {(t, name): report for t in (0.8, 0.0) for name, report in domains.items()}
    keeping = {key: speed.Keeping.of(report) for key, report in reports.items()}
    found = {one.figure: one.value for one in speed.find_figures(reports, keeping)}
    assert found["T 0.8, speculation: the best K over K = 0"] == pytest.approx(1.2)  # prose
    assert found["T 0.8, the same, both at K = 4"] == pytest.approx(1.5)  # code
    assert found["T 0.8, draftloop over mlx-lm, both at K = 0"] == pytest.approx(1.25)
    assert found["T 0.8, draftloop over mlx-lm's speculation, each at its best K"] == pytest.approx(0.75)
    assert found["T 0, adaptive K over the best fixed K"] == pytest.approx(0.6)


def test_a_lucky_pass_does_not_make_a_row_the_best(speed: ModuleType) -> None:
    rows = [row(Way(OURS, "rejection", 1), 60, 60, 60, 60), row(Way(OURS, "rejection", 2), 55, 55, 55, 90)]
    report = report_of(row(Way(OURS, None, 0), 50, 50, 50, 50), *rows)
    best = speed.best_by_the_others(speed._drafting(report, OURS))
    assert speed.Ratio.of(speed._passes(best), [50] * 4).mean == pytest.approx(1.2)
