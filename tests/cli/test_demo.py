"""`demo` prints a table and one plain sentence, or JSON; here at a size that takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftloop import demo
from draftloop.config import Training
from draftloop.demo import LoopSettings
from draftloop.errors import Interrupted


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real demo on the real pair, but few prompts and one epoch."""
    few = LoopSettings(weak_prompts=12, own_prompts=3, benchmark_prompts=3, max_tokens=12)
    monkeypatch.setattr(demo, "DEMO", few)
    whole = demo.loop_config
    training = Training(epochs=1, answers=0, proposals=0)
    monkeypatch.setattr(demo, "loop_config", lambda settings, _: whole(settings, training))


def test_the_table_and_the_sentence_go_to_stdout_and_progress_to_stderr(call) -> None:
    found = call("demo")
    assert found.code == 0, found.err
    said = " ".join(found.out.split())
    for text in ("before", "after", "95% interval", "prose", "code", "the acceptance length is"):
        assert text in said
    assert "collecting prose 12/12" in found.err
    assert list(Path().iterdir()) == []  # everything happened in a temporary directory


@pytest.mark.slow
def test_it_is_one_screen_and_says_that_other_machines_find_other_figures(call, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = call("demo")
    lines = (found.out + found.err).splitlines()
    assert sum(1 + len(line) // 80 for line in lines) <= 40  # of 45: set-up says a few of its own
    rows = [line for line in found.out.splitlines() if "per position" in line]
    assert [row.split(":")[0].strip() for row in rows] == ["prose", "code"]
    assert all(row.rstrip().endswith("]") for row in rows)  # none goes on below
    assert "figures differ a little from machine to machine" in found.out


@pytest.mark.slow
def test_json_has_both_domains_and_the_data_can_be_kept(call) -> None:
    found = call("demo", "--json", "--keep", "kept")
    assert found.code == 0, found.err
    values = found.json
    for side in ("base", "adapter"):
        assert values[side].keys() >= {"acceptance_per_position", "acceptance_length"}
        assert values["other_domain"][side].keys() >= {"acceptance_per_position", "acceptance_length"}
    assert values["comparison"].keys() >= {"delta_acceptance_length", "ci_low", "ci_high"}
    assert values["seconds"] > 0
    assert (Path("kept") / "adapters" / "v0001" / "adapters.safetensors").is_file()
    assert call("demo", "--keep", "kept").code == 2


def test_a_demo_that_was_stopped_does_not_offer_a_run_that_is_gone(call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_arguments: object) -> None:
        raise Interrupted("`train --resume r0001` goes on from there")

    monkeypatch.setattr(demo, "run_loop", stopped)
    found = call("demo")
    assert found.code == 130
    (said,) = (line for line in found.err.splitlines() if not line.startswith("slower than it need be"))  # no OpenBLAS
    assert said == "stopped: nothing of the demo is kept; run it again from the start"
    assert "--resume" in call("demo", "--keep", "kept").err
