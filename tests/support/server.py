"""`draftloop serve` in a process of its own, on a free port of loopback."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

_CUSTOMIZED = Path(__file__).parent / "keeps_priority"
_SECONDS = 120  # until it serves; a machine may be busy


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what must come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


class Server:
    """A server, from `with` on.

    Args:
        data: the data directory.
        arguments: of the command.
        settings: by their dotted keys, those that have no flag.
        prelude: a program that its process runs first.
        key: an API key, where the arguments bring some.

    Attributes:
        data: the data directory.
        url: what clients take as the base of their URLs.
        said: lines on stderr so far.
    """

    def __init__(
        self,
        data: Path,
        *arguments: str,
        settings: Mapping[str, object] | None = None,
        prelude: str = "",
        key: str = "none",
    ) -> None:
        program = ("-c", f"{prelude}\nfrom draftloop.cli import run_and_exit\nrun_and_exit()")
        begin = program if prelude else ("-m", "draftloop")
        self._command = [sys.executable, *begin, "--data-dir", str(data), "serve", "--port", "0", *arguments]
        names = {f"DRAFTLOOP_{key.upper().replace('.', '_')}": str(value) for key, value in (settings or {}).items()}
        found = os.pathsep.join([str(_CUSTOMIZED), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._environment = {**os.environ, **names, "PYTHONPATH": found}
        self.data, self.arguments = data, arguments
        self.said: list[str] = []
        self.url = ""
        self.key = key

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.url.removeprefix("http://").removesuffix("/v1").split(":")
        return host, int(port)

    def __enter__(self) -> Server:
        self.process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True, env=self._environment)
        found: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            assert self.process.stderr is not None
            with self.process.stderr as lines:
                for line in lines:
                    self.said.append(line.rstrip())
                    if match := re.search(r"serving .* on (http://\S+)", line):
                        found.put(match[1])
            found.put(None)

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        try:
            url = found.get(timeout=_SECONDS)
        except queue.Empty:
            self.process.kill()
            raise AssertionError(f"it does not serve: {self.said}") from None
        if url is None:
            raise AssertionError(f"it ended with {self.process.wait()}: {self.said}")
        self.url = url
        return self

    def metric(self, name: str) -> float:
        """The sum of the samples whose names and labels begin so."""
        headers = {"Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(self.url.replace("/v1", "/metrics"), headers=headers)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"draftloop:{name}"))

    def rest(self) -> None:
        """Wait until no request is left."""
        until(lambda: not self.metric("num_requests_running") and not self.metric("num_requests_waiting"))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait for the end; the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(_SECONDS)
        self._reader.join(_SECONDS)
        return code

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(_SECONDS)
