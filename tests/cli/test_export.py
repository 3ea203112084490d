"""`adapters export`: what it prints, what it refuses, and that mlx-lm's own commands run what it wrote."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx_lm
import numpy as np
import pytest
from builders import make_record
from model_dirs import write_lora
from mortal import HANGS

from draftloop.config import Models
from draftloop.data.record_lines import to_line
from draftloop.models.pair import Pair
from draftloop.registry.registry import Registry

EXPORT = ["adapters", "export", "latest", "--to", "out"]


@pytest.fixture
def version(small_pair: Pair, _place: None) -> str:
    """A version of the small draft."""
    registry = Registry(Path("data/adapters"))
    registry.create(lambda path: write_lora(path, small_pair.draft, amount=0.3) and None, {"pair": small_pair.identity})
    return "v0001"


@pytest.fixture
def held_out(small_pair: Pair, version: str) -> int:
    """How many held-out generations are logged."""
    rng = np.random.default_rng(0)
    log = Path("data/failures/failures.jsonl")
    log.parent.mkdir(parents=True)
    for number in range(5):
        ids = tuple(int(i) for i in rng.integers(1, 280, 12))
        fields = {"prompt": "x" * number, "prompt_tokens": ids[:4], "target_output": ids[4:], "split": "heldout"}
        with log.open("ab") as file:
            file.write(to_line(make_record(pair=small_pair.identity, **fields)))
    return 5


# -- what it says -----------------------------------------------------------------------------------------------------


def test_json_holds_the_measurement_of_what_was_written(call_with_pair, held_out: int) -> None:
    done = call_with_pair(*EXPORT, "--fuse", "--q-bits", "4", "--q-group-size", "32", "--json")
    assert done.code == 0
    found = done.json
    assert (found["status"], found["version"], found["fused"]) == ("ok", "v0001", True)
    assert Path(found["path"]) == Path("out").resolve()
    assert found["quantization"] == {"bits": 4, "group_size": 32, "mode": "affine"}
    assert found["measured"]["conditions"]["texts"] == held_out
    assert found["not_measured"] is None
    assert [row["adapter"] for row in found["measured"]["results"]] == ["none", "v0001", "exported"] * 3
    assert {row["num_draft_tokens"] for row in found["measured"]["results"]} == {4}
    card = Path("out/README.md").read_text()
    for row in found["measured"]["results"]:
        assert f"| {row['acceptance_per_position']:.4f} |" in card
        assert f"| {row['acceptance_length']:.4f} |" in card
    assert f"writing v0001\nmeasuring on {held_out} held-out generations\n" in done.err


def test_text_is_a_line_and_tables(call_with_pair, held_out: int) -> None:
    done = call_with_pair(*EXPORT, "--fuse", "--num-draft-tokens", "2")
    assert done.code == 0
    out = Path("out").resolve()
    assert done.out.startswith(
        f"{out}: draft with the adapter in its weights, v0001; not quantized, 32 bits a weight\n"
    )
    assert "intervals: 95% cluster bootstrap" in done.out
    assert re.search(r"^target \w{12}, draft \w{12}; .*; K = 2$", done.out, re.MULTILINE)
    for row in ("none", "exported", "v0001 minus none", "exported minus v0001"):
        assert f"\n {row} " in done.out


def test_an_adapter_alone_is_measured_too(call_with_pair, held_out: int) -> None:
    found = call_with_pair(*EXPORT, "--limit", "2", "--json").json
    assert (found["fused"], found["measured"]["conditions"]["texts"]) == (False, 2)
    rows = {(row["adapter"], row["rule"]): row["acceptance_length"] for row in found["measured"]["results"]}
    assert rows["exported", "rejection"] == rows["v0001", "rejection"]


def test_without_held_out_generations_it_says_so_and_exports(call_with_pair, version: str) -> None:
    done = call_with_pair(*EXPORT)
    assert done.code == 0
    assert done.out.endswith("adapter, v0001; LoRA, rank 4, scale 1\nnot measured: no held-out generation\n")
    assert "Not measured: no held-out generation." in Path("out/README.md").read_text()
    found = call_with_pair("adapters", "export", "v0001", "--to", "again", "--json").json
    assert (found["measured"], found["not_measured"]) == (None, "no held-out generation")


def test_what_rounding_costs_is_said_and_that_it_ends_below_the_bare_draft(
    call_with_pair, small_pair: Pair, version: str
) -> None:
    """The bare draft is near its target; a zero adapter in two bits is far from it."""
    registry = Registry(Path("data/adapters"))
    fields = {"pair": small_pair.identity}
    registry.create(lambda path: write_lora(path, small_pair.draft, amount=0.0) and None, fields)
    Path("many.txt").write_text("".join(f"prompt {'ab' * i}\n" for i in range(25)))
    collect = ["collect-data", "--prompts-file", "many.txt", "--max-tokens", "12", "--temp", "0", "--adapter", "none"]
    assert call_with_pair(*collect).code == 0
    rough = call_with_pair(*EXPORT, "--fuse", "--q-bits", "2", "--q-group-size", "32")
    assert "below the adapter's (rule greedy), because its weights are rounded; --q-bits 8" in rough.err
    exact = call_with_pair("adapters", "export", "latest", "--to", "exact", "--fuse")
    assert "weights are rounded" not in exact.err
    below = "Below the bare draft: under rule greedy at K = 4 the acceptance length of this export is "
    assert below in rough.out
    assert below in Path("out/README.md").read_text()
    assert "Below the bare draft" not in exact.out + Path("exact/README.md").read_text()  # a zero adapter is as good
    again = [
        "adapters",
        "export",
        "latest",
        "--to",
        "again",
        "--fuse",
        "--q-bits",
        "2",
        "--q-group-size",
        "32",
        "--json",
    ]
    assert call_with_pair(*again).json["below_bare_draft"] == ["greedy"]


def test_a_damaged_line_of_the_log_is_named_and_the_rest_measured(call_with_pair, held_out: int) -> None:
    log = Path("data/failures/failures.jsonl")
    log.write_bytes(b"damaged\n" + log.read_bytes())
    done = call_with_pair(*EXPORT, "--json")
    assert done.json["measured"]["conditions"]["texts"] == held_out
    assert f"damaged: {log}, line 1: " in done.err


def test_the_group_lists_it(call) -> None:
    assert "export" in call("adapters", "--help").out
    assert "--q-group-size" in call("adapters", "export", "--help").out


# -- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "latest"], "Missing option '--to'"),
        (["export", "--to", "out"], "Missing argument 'VERSION'"),
        (["export", "v0009", "--to", "out"], "No adapter v0009"),
        (["export", "champion", "--to", "out"], "champion is the bare draft"),
        (["export", "latest", "--to", "out", "--q-bits", "4"], "need --fuse"),
        (["export", "latest", "--to", "out", "--q-group-size", "64"], "need --fuse"),
        (["export", "latest", "--to", "out", "--dequantize"], "need --fuse"),
        (["export", "latest", "--to", "out", "--fuse", "--q-bits", "4", "--dequantize"], "give one"),
        (
            ["export", "latest", "--to", "out", "--fuse", "--q-bits", "7"],
            "--q-bits is 7, expected one of 2, 3, 4, 5, 6, 8",
        ),
        (["export", "latest", "--to", "out", "--fuse", "--q-bits", "many"], "'many' is not a valid integer"),
        (["export", "latest", "--to", "full"], "full is there already"),
        (["export", "latest", "--to", "."], "is there already"),
        (["export", "latest", "--to", "full/file"], "is there already"),
        (["export", "latest", "--to", "full/file/x"], "cannot be exported to"),
        (["export", "latest", "--to", "data/adapters/v0002"], "lies in the data directory"),
        (["export", "latest", "--to", "data/out"], "lies in the data directory"),
        (["export", "latest", "--to", "full/../data/new/out"], "lies in the data directory"),
        (["export", "latest", "--to", "data"], "lies in the data directory"),
        (["export", "latest", "--to", "out", "--limit", "0"], "0 is not in the range"),
        (["export", "latest", "--to", "out", "--num-draft-tokens", "0"], "speculative.num_draft_tokens = 0"),
        (["export", "latest", "--to", "out", "--draft-model", "nowhere"], "model 'nowhere' is no directory here"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(arguments: list[str], message: str, call, version: str) -> None:
    Path("full").mkdir()
    Path("full/file").write_text("x")
    done = call("adapters", *arguments, "--json")
    assert (done.code, done.json["status"]) == (2, "error")
    assert message in done.json["error"]
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert not Path("out").exists()
    assert Path("full/file").read_text() == "x"


def test_a_version_of_another_draft_is_refused(call_with_pair, small_pair: Pair, version: str) -> None:
    registry = Registry(Path("data/adapters"))
    registry.create(lambda path: write_lora(path, small_pair.draft, amount=0.3) and None, {"pair": _other(small_pair)})
    done = call_with_pair(*EXPORT, "--fuse", "--json")
    assert (done.code, done.json["status"]) == (2, "error")
    assert "v0002 was trained for draft ffffffffffff" in done.json["error"]
    assert not Path("out").exists()


def _other(pair: Pair) -> dict[str, str]:
    return {"target": pair.identity.target, "draft": "f" * 64, "tokenizer": pair.identity.tokenizer}


# -- mlx-lm's own commands --------------------------------------------------------------------------------------------


def plain_text(target: str, prompt: str, max_tokens: int) -> str:
    """What the target alone says, greedily."""
    model, tokenizer = mlx_lm.load(target)
    messages = [{"role": "user", "content": prompt}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(chat, add_special_tokens=False)
    return str(mlx_lm.generate(model, tokenizer, ids, max_tokens=max_tokens))


@pytest.mark.parametrize("options", [[], ["--q-bits", "8", "--q-group-size", "32"]])
def test_mlx_lm_generate_runs_the_command_of_the_card(
    options: list[str], call_with_pair, small_models: Models, version: str
) -> None:
    call_with_pair(*EXPORT, "--fuse", *options)
    (command,) = (line for line in Path("out/README.md").read_text().splitlines() if line.startswith("mlx_lm.generate"))
    words = shlex.split(command)
    assert words[1:6] == ["--model", "path/to/target", "--draft-model", "./out", "--num-draft-tokens"]
    given = [small_models.target if word == "path/to/target" else word for word in words[1:]]
    done = subprocess.run(
        [sys.executable, "-m", "mlx_lm", "generate", *given, "--max-tokens", "12", "--verbose", "False"],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == plain_text(small_models.target, "Hello", 12).rstrip("\n")


def test_the_python_of_an_adapters_card_runs(
    call_with_pair, small_models: Models, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call_with_pair(*EXPORT)
    code = Path("out/README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("path/to/target", small_models.target).replace("path/to/draft", small_models.draft)
    exec(code, {})
    target, tokenizer = mlx_lm.load(small_models.target)
    assert capsys.readouterr().out == mlx_lm.generate(target, tokenizer, "Hello") + "\n"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def request(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANGS)
    try:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
        return dict(json.load(answer))
    finally:
        connection.close()


@contextmanager
def server(*arguments: str) -> Iterator[int]:
    """`mlx_lm server` on a port of its own, once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "mlx_lm", "server", "--port", str(port), *arguments]
    with Path("server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        wait_until_it_answers(process, port)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=HANGS)


def wait_until_it_answers(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + HANGS
    while time.monotonic() < deadline:
        assert process.poll() is None, Path("server.log").read_text()
        try:
            request(port, "GET", "/health")
        except ConnectionError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(Path("server.log").read_text())


def test_mlx_lm_server_answers_with_the_exported_draft(call_with_pair, small_models: Models, version: str) -> None:
    call_with_pair(*EXPORT, "--fuse", "--q-bits", "4", "--q-group-size", "32")
    with server("--model", small_models.target, "--draft-model", "./out", "--num-draft-tokens", "4") as port:
        messages = [{"role": "user", "content": "Hello"}]
        answer = request(port, "POST", "/v1/chat/completions", {"messages": messages, "max_tokens": 12})
    assert answer["choices"][0]["message"]["content"] == plain_text(small_models.target, "Hello", 12)
    assert answer["usage"]["completion_tokens"] == 12
