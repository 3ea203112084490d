"""Render chat templates in a child process, within bounds of time, memory and output. Knows no tokenizer.

The child is started when the first template is rendered, serves all of them, and ends with this process: Ctrl-C does
not reach it, and it reads the end of its input however this process ends. It is spawned, since a fork of a process that
holds a GPU is not safe.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MEMORY_BYTES = 10**9  # of the child; on Linux it limits itself, elsewhere it is looked at
_WATCHED = sys.platform != "linux"
_LOOK_S = 0.1
_PATIENCE = 100  # times the CPU seconds, by the clock: for a child that hangs; a busy machine must not reach it
_WORKER = Path(__file__).with_name("template_worker.py")


class TemplateFailed(Exception):
    """A template that gives no text, and why, in a line."""


def render(template: str, variables: dict[str, Any], *, limit: int, seconds: int) -> str | None:
    """The text of a template.

    Args:
        template: Jinja, in the environment that Hugging Face's templates are written for.
        variables: what it may use: JSON alone.
        limit: most characters of the text.
        seconds: of CPU time that it may take. One that took more is not tried again in this process.

    Returns:
        None where the text would be longer than the limit.

    Raises:
        TemplateFailed: it raised something, took too long or too much memory.
    """
    with _LOCK:
        if template in _GIVEN_UP:
            raise TemplateFailed(_GIVEN_UP[template])
        request = {"template": template, "variables": variables, "limit": limit, "seconds": seconds}
        try:
            answer = _started().ask(request, seconds)
        except _OutOfTime as error:
            _GIVEN_UP[template] = str(error)
            raise
    if "error" in answer:
        raise TemplateFailed(answer["error"])
    text: str | None = answer.get("text")
    return text


class _OutOfTime(TemplateFailed):
    """Too slow for this prompt, so not to be waited for with the next one."""


class _Worker:
    """The child process."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", str(_WORKER), *(_home(name) for name in ("jinja2", "markupsafe"))]
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            process_group=0,
        )

    def ask(self, request: dict[str, Any], seconds: int) -> dict[str, Any]:
        """Its answer; whatever comes instead, the child is ended: half an answer would be taken for the next one's."""
        try:
            self._send(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(self._line(seconds))
        except BaseException:
            self.end()
            raise
        return answer

    def end(self) -> None:
        """Kill the child and wait for it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def ended(self) -> bool:
        """Whether it can be asked no more."""
        return self._process.returncode is not None

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._process.stdin.write(rest) :]
        except BrokenPipeError:
            return  # `_line` finds out why

    def _line(self, seconds: int) -> bytes:
        assert self._process.stdout is not None
        descriptor, deadline = self._process.stdout.fileno(), time.monotonic() + _PATIENCE * seconds
        line = bytearray()
        while not line.endswith(b"\n"):
            if select.select([descriptor], [], [], _LOOK_S)[0]:
                piece = os.read(descriptor, 1 << 20)
                if not piece:
                    raise self._why(seconds)
                line += piece
            elif time.monotonic() > deadline:
                raise _OutOfTime(f"it took longer than {_PATIENCE * seconds} s (speculative.template_seconds)")
            elif _WATCHED and _resident_bytes(self._process.pid) > MEMORY_BYTES:
                raise TemplateFailed(f"it took more than {MEMORY_BYTES // 10**6} MB of memory")
        return bytes(line)

    def _why(self, seconds: int) -> TemplateFailed:
        """What ended the child."""
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return _OutOfTime(f"it took more than {seconds} s of CPU time (speculative.template_seconds)")
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return TemplateFailed(f"the process that rendered it {how}")


def _home(package: str) -> str:
    """The directory that a package is imported from."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parents[1])


def _resident_bytes(pid: int) -> int:
    """What a process holds in memory; 0 where it is gone."""
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=False)
    return int(done.stdout or 0) * 1024


_LOCK = threading.Lock()
_GIVEN_UP: dict[str, str] = {}
_worker: _Worker | None = None


def _started() -> _Worker:
    global _worker
    if _worker is None or _worker.ended or _worker.owner != os.getpid():  # after a fork it is the parent's
        _worker = _Worker()
    return _worker


@atexit.register
def _end() -> None:
    if _worker is not None and _worker.owner == os.getpid():
        _worker.end()
