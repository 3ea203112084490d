"""Tables in the documents are what the results files say, and a figure knows whether it reached its bound."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import benchmark_scripts
import pytest


def load(root: Path, name: str) -> ModuleType:
    return benchmark_scripts.load(root / "benchmarks" / f"{name}.py")


def test_the_documents_tables_are_those_of_the_results_files(root: Path) -> None:
    render = load(root, "render")
    for document in render.DOCUMENTS:
        text = document.read_text()
        assert render.rendered(text) == text, f"{document.name} is stale: run python benchmarks/render.py"
    assert "<!-- table: demo -->" in (root / "README.md").read_text()
    for name in ("closed_loop", "soak"):
        assert f"<!-- table: {name} -->" in (root / "docs" / "measurements.md").read_text()


def test_a_changed_result_would_make_the_documents_stale(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = load(root, "render")
    found = json.loads((root / "benchmarks/results/closed_loop.json").read_text())
    found["figures"][0]["value"] += 1.0
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/closed_loop.json").write_text(json.dumps(found))
    table = render.table("closed_loop")
    monkeypatch.setattr(render, "ROOT", tmp_path)
    assert render.table("closed_loop") != table


@pytest.mark.parametrize(
    ("at_least", "shown"), [(1e-9, "above 0"), (0.0, "above 0"), (-0.005, "at least -0.005"), (0.14, "at least 0.14")]
)
def test_a_table_shows_a_bound_as_it_is(root: Path, at_least: float, shown: str) -> None:
    found = json.loads((root / "benchmarks/results/closed_loop.json").read_text())
    found["figures"] = [{**found["figures"][0], "at_least": at_least}]
    assert f"| {shown} |" in load(root, "render").figures_table(found)


@pytest.mark.parametrize(
    ("bounds", "reached"),
    [({"at_least": 1.0}, True), ({"at_least": 1.1}, False), ({"at_most": 1.0}, True), ({"at_most": 0.9}, False)],
)
def test_a_figure_is_reached_on_the_right_side_of_its_bound(root: Path, bounds: dict, reached: bool) -> None:
    figure = load(root, "results").Figure("a", 1.0, "b", **bounds)
    assert figure.reached is reached
    assert figure.to_json() == {"figure": "a", "value": 1.0, **bounds, "unit": "b", "reached": reached}


def test_every_results_file_says_machine_versions_conditions_and_figures(root: Path) -> None:
    found = json.loads((root / "benchmarks/results/closed_loop.json").read_text())
    assert found.keys() >= {"machine", "versions", "conditions", "figures"}
    for row in found["figures"]:
        bound = row["value"] >= row["at_least"] if "at_least" in row else row["value"] <= row["at_most"]
        assert row["reached"] == bound
