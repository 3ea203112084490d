"""Servers in processes of their own, ours and mlx-lm's, and clients that ask them and count."""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
from mlx_lm.utils import load, save_config, save_model

from draftloop.export.fuse import Quantization, fuse
from draftloop.models.pair import Pair

# mlx-lm's own server, with the BLAS and the allocator that ours has
_THEIRS = "from draftloop import prepare_process; prepare_process(); from mlx_lm.server import main; main()"
_SECONDS = 300.0


@dataclass(frozen=True)
class Answered:
    """One answer: its tokens, and seconds until the first of them and until the last."""

    text: str
    tokens: int
    first: float
    seconds: float
    usage: dict[str, Any]


def float32_copy(model: Path, folder: Path) -> Path:
    """A model directory with float32 weights, which both servers load as they are."""
    loaded, tokenizer, config = load(str(model), return_config=True)
    loaded.set_dtype(mx.float32)
    folder.mkdir(parents=True)
    save_model(folder, loaded)
    save_config({key: value for key, value in config.items() if key != "torch_dtype"}, folder / "config.json")
    tokenizer.save_pretrained(str(folder))
    return folder


def with_its_adapter(pair: Pair, draft: Path, folder: Path) -> Path:
    """A model directory of a pair's draft with the adapter in its float32 weights; the pair's is used up."""
    shutil.copytree(draft, folder)
    config = fuse(pair.draft, json.loads((draft / "config.json").read_text()), Quantization())
    save_model(folder, pair.draft)
    save_config(config, folder / "config.json")
    return folder


@contextmanager
def server(
    command: Sequence[str], port: int, log: Path = Path(os.devnull), environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A running server's base URL.

    Args:
        command: arguments of Python.
        port: that the command names.
        log: a file for its stderr.
        environment: variables beside this process's own.
    """
    given = {**os.environ, **(environment or {})}
    with log.open("w") as stderr:
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=stderr, env=given)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def ours(target: Path, draft: Path, data: Path, port: int, *more: str) -> list[str]:
    """How `draftloop serve` is started."""
    pair = ["--model", str(target), "--draft-model", str(draft)]
    return ["-m", "draftloop", "--data-dir", str(data), "serve", "--port", str(port), *pair, *more]


def theirs(target: Path, port: int, *more: str) -> list[str]:
    """How mlx-lm's server is started."""
    return ["-c", _THEIRS, "--model", str(target), "--port", str(port), *more]


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def ask(client: httpx.Client, url: str, prompt: str, **fields: Any) -> Answered:
    """Stream one completion."""
    return _stream(client, f"{url}/v1/completions", {"prompt": prompt, **fields}, lambda choice: choice["text"])


def ask_chat(client: httpx.Client, url: str, messages: list[dict[str, str]], **fields: Any) -> Answered:
    """Stream one turn of a chat."""
    body = {"messages": messages, **fields}
    return _stream(client, f"{url}/v1/chat/completions", body, lambda choice: choice["delta"].get("content") or "")


def _stream(client: httpx.Client, url: str, body: dict[str, Any], text_of: Callable[[dict[str, Any]], str]) -> Answered:
    body = {"stream": True, "stream_options": {"include_usage": True}, **body}
    began, first, text = time.perf_counter(), None, ""
    usage: dict[str, Any] = {}
    with client.stream("POST", url, json=body, timeout=_SECONDS) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                new = text_of(choice)
                text += new
                if first is None and new:
                    first = time.perf_counter() - began
    seconds = time.perf_counter() - began
    return Answered(text, usage["completion_tokens"], first or seconds, seconds, usage)


def one_after_the_other(url: str, prompts: Sequence[str], **fields: Any) -> list[Answered]:
    """Answers of one client."""
    with httpx.Client() as client:
        return [ask(client, url, prompt, **fields) for prompt in prompts]


def at_once(url: str, prompts: Sequence[str], clients: int, **fields: Any) -> tuple[list[Answered], float]:
    """Answers of several clients that share the prompts, and the seconds that all took."""
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool, httpx.Client() as client:
        found = list(pool.map(lambda prompt: ask(client, url, prompt, **fields), prompts))
    return found, time.perf_counter() - began


def tokens_per_second(answers: Sequence[Answered]) -> float:
    """Of answers that came one after the other."""
    return sum(one.tokens for one in answers) / sum(one.seconds for one in answers)


def spread_of_waiting(answers: Sequence[Answered]) -> float:
    """The longest wait for a first token over the mean one."""
    return max(one.first for one in answers) / statistics.mean(one.first for one in answers)


def resident_megabytes(port: int) -> float:
    """Of the process that serves on a port; Linux alone says so."""
    return _megabytes(port, "VmRSS")


def own_megabytes(port: int) -> float:
    """The same without what is mapped from files, which other processes may share."""
    return _megabytes(port, "RssAnon")


def _megabytes(port: int, kind: str) -> float:
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if f"--port\0{port}\0".encode() in (status.parent / "cmdline").read_bytes():
                (line,) = (one for one in status.read_text().splitlines() if one.startswith(f"{kind}:"))
                return int(line.split()[1]) / 1024
        except (OSError, ValueError):
            continue
    raise RuntimeError("the server's process is not found")


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server has ended with {process.returncode}")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the server is not there after {_SECONDS:g} seconds")
