"""A command that is refused memory says what it was doing and what to lower, in a line and an exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftloop.cli.app import App

METAL = "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackError…)."


def refused(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(App, "load_pair", load)


def test_generating_says_what_to_lower(call, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(monkeypatch, RuntimeError(METAL))
    found = call("generate", "a prompt")
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith("error: out of memory while generating ([METAL] Command buffer")
    assert "lower speculative.max_tokens" in found.err
    assert found.err.count("\n") == 1


def test_training_says_it_in_json_too(call, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(monkeypatch, MemoryError())
    Path("data").mkdir()
    found = call("train", "--json")
    assert found.code == 1
    assert found.json["status"] == "error"
    assert "lower training.lora.rank" in found.json["error"]


def test_another_error_is_not_taken_for_it(call, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(monkeypatch, RuntimeError("[matmul] shapes do not match"))
    with pytest.raises(RuntimeError, match="matmul"):
        call("generate", "a prompt")


@pytest.mark.parametrize(("value", "said"), [("0", "= '0'"), ("much", "= 'much'"), ("-1", "= '-1'")])
def test_a_memory_that_is_no_number_is_refused(call, value: str, said: str) -> None:
    found = call("train", "--memory", value)
    assert found.code == 2
    assert f"training.memory {said}: expected auto, or a number of GB above 0" in found.err
