"""`doctor`: a line a finding, each with its remedy, and an exit code for scripts."""

from __future__ import annotations

import pytest

from draftloop.runtime import blas, memory
from draftloop.runtime.memory import DeviceMemory


@pytest.fixture(autouse=True)
def _healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setattr(blas, "is_needed", lambda: False)
    monkeypatch.setattr(memory, "read_device", lambda: DeviceMemory(16 << 30, "RAM"))


def test_a_healthy_machine_is_a_line_for_each_finding(call_with_pair) -> None:
    found = call_with_pair("doctor")
    assert (found.code, found.err) == (0, "")
    assert [line[8:].split(":")[0] for line in found.out.splitlines()] == [
        "config",
        "platform",
        "packages",
        "BLAS",
        "device",
        "memory",
        "data",
        "pair",
        "caches",
        "serve --learn idle",
    ]


def test_json_has_every_finding_with_its_remedy(call_with_pair) -> None:
    found = call_with_pair("doctor", "--json")
    assert (found.code, found.json["status"]) == (0, "ok")
    assert all(set(one) == {"name", "state", "found", "remedy"} for one in found.json["findings"])


def test_a_problem_is_marked_with_its_remedy_and_exit_code_1(call) -> None:
    found = call("doctor", "--model", "nowhere")
    assert found.code == 1
    (line,) = (line for line in found.out.splitlines() if line.startswith("PROBLEM"))
    assert line.startswith("PROBLEM pair: model 'nowhere' is no directory here")
    assert line.endswith(" -> correct models.target and models.draft")
    assert call("doctor", "--model", "nowhere", "--json").json["status"] == "problem"


def test_the_models_can_be_left_out(call) -> None:
    found = call("doctor", "--no-pair", "--model", "nowhere")
    assert found.code == 0
    assert "pair" not in found.out
