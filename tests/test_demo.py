"""The whole loop runs on the embedded pair: it collects, trains, measures, and the same seed gives the same numbers."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from draftloop import reference
from draftloop.config import Training
from draftloop.demo import DEMO, LoopResult, LoopSettings, loop_config, run_loop, short_training

SMALL = LoopSettings(weak_prompts=20, own_prompts=4, benchmark_prompts=4, max_tokens=16)


def small_loop(folder: Path) -> tuple[LoopResult, list[tuple[str, int, int]]]:
    steps: list[tuple[str, int, int]] = []
    config = loop_config(SMALL, Training(epochs=6, batch_size=4, answers=0, proposals=0))
    _, loop = run_loop(SMALL, config, folder, lambda *step: steps.append(step))
    return loop, steps


@pytest.mark.slow
@pytest.mark.usefixtures("on_the_cpu")
def test_a_small_loop_measures_both_domains_with_and_without_the_adapter_it_trained(tmp_path: Path) -> None:
    loop, steps = small_loop(tmp_path / "one")
    assert loop.trained.version == "v0001"
    assert {domain: report.generations for domain, report in loop.collected.items()} == {"prose": 20, "code": 4}
    for domain in reference.DOMAINS:
        before, after, change = loop.row(domain, False), loop.row(domain, True), loop.change(domain)
        assert change.delta_acceptance_length == pytest.approx(after.acceptance_length - before.acceptance_length)
        changed = before.acceptance_per_position != after.acceptance_per_position
        assert changed == (loop.trained.best_step > 0)
    assert {what for what, _, _ in steps} >= {"collecting prose", "collecting code", "training"}
    assert all(0 <= done <= total for _, done, total in steps)

    again, _ = small_loop(tmp_path / "two")
    assert [asdict(report)["results"] for report in again.reports.values()] == [
        asdict(report)["results"] for report in loop.reports.values()
    ]
    json = loop.to_json()
    assert json["base"].keys() >= {"acceptance_per_position", "acceptance_length"}
    assert json["comparison"].keys() >= {"delta_acceptance_length", "ci_low", "ci_high"}
    assert json["other_domain"].keys() == {"base", "adapter"}


@pytest.mark.e2e
def test_the_demo_makes_the_draft_better_on_prose_and_keeps_it_on_code(tmp_path: Path) -> None:
    settings = replace(DEMO, seed=1)
    _, loop = run_loop(settings, loop_config(settings, short_training(1)), tmp_path, lambda *_: None)
    weak, own = loop.change(reference.WEAK_DOMAIN), loop.change(reference.OWN_DOMAIN)
    assert weak.ci_low is not None
    assert weak.ci_low > 0
    assert own.delta_acceptance_per_position > -0.02
