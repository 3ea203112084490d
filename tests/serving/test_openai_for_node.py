"""OpenAI's package for Node and a real server: the scenarios of tests/support/openai_client.mjs."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mortal import HANGS
from scripted_pair import GREETING, SONG
from server import Server, until

PACKAGE = "openai@6.49.0"
"""The last one that says that it runs on Node 20."""
OLDEST = 20
GREETED = "".join(GREETING)
ANSWERED = "It is 19 °C in Lima."

pytestmark = pytest.mark.clients

Run = Callable[[str], Any]


def printed(*command: object) -> str:
    """What a command prints; the test fails with what it says where it does."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the package is installed, by npm."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: install Node {OLDEST} or later")
    version = printed("node", "--version").strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST:
        pytest.skip(f"needs Node {OLDEST} or later, found {version}")
    folder = tmp_path_factory.mktemp("node")
    quiet = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--no-update-notifier")
    command = ["npm", "install", "--prefix", str(folder), *quiet, PACKAGE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANGS, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install {PACKAGE}: {' '.join(done.stderr.split())[:300]}")
    return folder


@pytest.fixture
def run(scripted: Server, node_modules: Path, root: Path) -> Run:
    """Runs a scenario."""
    program = root / "tests" / "support" / "openai_client.mjs"
    return lambda scenario: json.loads(printed("node", program, node_modules, scripted.url, scripted.key, scenario))


@pytest.mark.parametrize("scenario", ["chat", "usual"])
def test_a_chat_is_answered_and_counted(run: Run, scenario: str) -> None:
    found = run(scenario)
    assert found["choices"][0]["message"]["content"] == GREETED
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] == len(GREETING) + 1


def test_a_stream_is_read_by_its_iterator_and_its_counts_come_last(run: Run) -> None:
    *chunks, last = run("stream")
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == GREETED
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], len(GREETING) + 1)


def test_the_helper_of_streams_puts_the_answer_together(run: Run) -> None:
    found = run("helper")
    assert found["content"] == "".join(found["seen"]) == GREETED
    assert found["end"]["choices"][0]["finish_reason"] == "stop"


def test_a_tool_is_called_and_its_result_is_answered(run: Run) -> None:
    found = run("tools")
    (call,) = found["message"]["tool_calls"]
    assert (found["finish_reason"], call["function"]["name"]) == ("tool_calls", "temperature")
    assert json.loads(call["function"]["arguments"]) == {"city": "Lima"}
    assert found["answer"] == ANSWERED


def test_a_call_in_a_stream_is_put_together(run: Run) -> None:
    found = run("streamedCall")
    assert found["finish_reason"] == "tool_calls"
    assert json.loads(found["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Lima"}


def test_the_package_runs_tools_by_itself(run: Run) -> None:
    assert run("runTools") == {"asked": ["Lima", "Lima"], "whole": ANSWERED, "streamed": ANSWERED}


def test_a_stop_string_is_left_out(run: Run) -> None:
    found = run("stop")
    assert (found["message"]["content"], found["finish_reason"]) == ("Hello there", "stop")


def test_log_probabilities_have_every_token(run: Run) -> None:
    found = run("logprobs")
    assert [entry["token"] for entry in found] == GREETING
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in found)


def test_a_completion_streams(run: Run) -> None:
    assert run("completions") == GREETED


def test_models_are_listed_and_described(run: Run) -> None:
    assert run("models") == ["target", "target"]


def test_a_mistake_is_the_exception_of_its_kind(run: Run) -> None:
    found = run("errors")
    for name in ("mistake", "streamed"):
        assert found[name] == {
            "kind": "BadRequestError",
            "status": 400,
            "code": None,
            "param": "n",
            "type": "invalid_request_error",
        }
    for name in ("model", "retrieved"):
        assert (found[name]["kind"], found[name]["code"]) == ("NotFoundError", "model_not_found")
    assert (found["key"]["kind"], found["key"]["code"]) == ("AuthenticationError", "invalid_api_key")


def test_what_is_one_too_many_is_a_429(scripted: Server, run: Run) -> None:
    found = run("full")
    assert (found["kind"], found["status"], found["code"]) == ("RateLimitError", 429, "queue_full")
    scripted.rest()


@pytest.mark.parametrize("scenario", ["abort", "breakOut"])
def test_a_stream_that_is_aborted_ends_its_decoding(scripted: Server, run: Run, scenario: str) -> None:
    name = 'request_success_total{finished_reason="cancelled"}'
    before = scripted.metric(name)
    assert run(scenario) == SONG[0]
    until(lambda: scripted.metric(name) == before + 1)
    scripted.rest()
