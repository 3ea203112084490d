"""The learning benchmark's figures are ratios of gains over the same bare draft, and stand only where both were run."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import benchmark_scripts
import pytest


@pytest.fixture
def report(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(root / "benchmarks")
    return importlib.import_module("learning_report")


def run_of(report: ModuleType, recipe: str, accepted: float, seed: int = 0, failures: int = 50) -> Any:
    """On 10 texts of 10 positions of each domain, from an acceptance of 0.2."""
    return report.Run(
        temperature=0.8,
        recipe=recipe,
        failures=failures,
        seed=seed,
        learning_rate=1e-3,
        openings=5,
        steps=20,
        seconds=40.0,
        peak_mb=10.0,
        curve=[(5.0, 0.1), (10.0, accepted)],
        last=accepted,
        base={domain: [(2.0, 10)] * 10 for domain in (report.WEAK, report.OWN)},
        trained={report.WEAK: [(10 * accepted, 10)] * 10, report.OWN: [(2.0, 10)] * 10},
    )


def test_a_gain_is_compared_with_a_gain_and_not_with_an_acceptance(report: ModuleType) -> None:
    runs = [run_of(report, report.BASELINE, 0.3), run_of(report, "kl", 0.4), run_of(report, report.OURS, 0.5)]
    found = {one.figure: one for one in report.find_figures(runs, at=50)}
    assert found["gain of ours over mlx_lm.lora, same steps"].value == pytest.approx(3.0)
    assert found["gain of ours over forward KL, same steps"].value == pytest.approx(1.5)
    assert found["the other domain"].value == pytest.approx(0.0)
    assert found["seconds until mlx_lm.lora ends, of its own"].value == pytest.approx(0.25)
    assert len(found) == 4  # by default, the ceiling and few failures were not run


def test_the_defaults_have_figures_of_their_own(report: ModuleType) -> None:
    some = [(report.BASELINE, 0.3), ("kl", 0.4), (report.OURS, 0.5), (report.BY_DEFAULT, 0.4)]
    found = {one.figure: one.value for one in report.find_figures([run_of(report, *one) for one in some], at=50)}
    assert found["gain of ours, as by default over mlx_lm.lora, same steps"] == pytest.approx(2.0)
    assert found["gain of ours, as by default over forward KL, same steps"] == pytest.approx(1.0)


def test_a_table_by_the_number_of_failures_stands_only_where_there_are_several(root: Path, report: ModuleType) -> None:
    render = benchmark_scripts.load(root / "benchmarks" / "render.py")
    runs = [run_of(report, recipe, accepted) for recipe, accepted in ((report.BASELINE, 0.3), (report.OURS, 0.5))]
    more = [run_of(report, one.recipe, 0.3, failures=20) for one in runs]
    found = {
        "base": {"0.8": {report.WEAK: 0.2, report.OWN: 0.2}},
        "differences": [],
        "figures": [],
        "machine": dict.fromkeys(("processor", "cores", "system", "device"), "x"),
        "versions": dict.fromkeys(("mlx", "mlx-lm", "python"), "1"),
    }
    one_size, two_sizes = (
        render.learning_table({**found, "rows": list(report.rows(some))}) for some in (runs, [*runs, *more])
    )
    assert "Temperature 0.8, 50 failures; before: prose 0.200, code 0.200." in one_size
    assert "By the number of failures" not in one_size
    assert "By the number of failures" in two_sizes
