"""A server on the embedded pair that trains while nobody asks, as the benchmarks of that have it. Knows no figure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import serving_world as world

from draftloop import reference
from draftloop.config import variable_of
from draftloop.data_directory import DataDirectory

TRAINING = "learning: train: "  # how the server's line begins when its child trains
IN_USE = "requests begin with "  # when another draft is put into use
_LAST_LINES = 5
_LONGEST_S = 60 * 60.0


@dataclass(frozen=True)
class LiveServer:
    """A running server.

    Attributes:
        url: without `/v1`.
        port: of it.
        log: the file of its lines on stderr, its child's among them.
        data: its data directory.
    """

    url: str
    port: int
    log: Path
    data: DataDirectory

    @property
    def said(self) -> str:
        """All lines so far."""
        return self.log.read_text(errors="replace")

    def metric(self, name: str) -> float:
        """A sample by its name, without our prefix, and its labels.

        Raises:
            RuntimeError: there is none.
        """
        for line in httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines():
            if line.startswith(f"draftloop:{name} "):
                return float(line.split()[-1])
        raise RuntimeError(f"the server's metrics have no {name}")

    @property
    def is_training(self) -> bool:
        """Whether its child is at work now."""
        return self.metric("learner_at_work") == 1

    @property
    def has_child(self) -> bool:
        """Whether there is one, at work or stopped."""
        return self.is_training or self.metric("learner_stopped") == 1

    @property
    def swaps(self) -> int:
        """How often another draft was put into use."""
        return self.said.count(IN_USE)

    def ask(self, prompts: Sequence[str], **fields: Any) -> list[world.Answered]:
        """Answers of one client, one after the other."""
        return world.one_after_the_other(self.url, prompts, **fields)

    def put_into_use(self, version: str) -> None:
        """By the endpoint for that; returns when requests begin with it."""
        before = self.swaps
        httpx.post(f"{self.url}/v1/draftloop/adapter", json={"version": version}, timeout=60).raise_for_status()
        self.until(lambda: self.swaps > before, f"{version} in use")

    def until(self, condition: Callable[[], bool], what: str, longest: float = _LONGEST_S) -> None:
        """Wait for what must come, for so many seconds at most.

        Raises:
            RuntimeError: it did not.
        """
        deadline = time.monotonic() + longest
        while not condition():
            if time.monotonic() > deadline:
                last = " | ".join(self.said.splitlines()[-_LAST_LINES:])
                raise RuntimeError(f"after {longest / 60:.0f} minutes it never came to this: {what}; it said: {last}")
            time.sleep(0.05)


@contextmanager
def live_server(folder: Path, idle_minutes: float, settings: Mapping[str, object], *more: str) -> Iterator[LiveServer]:
    """A server that learns, with the data directory `folder/data`.

    Args:
        folder: for its data and its log.
        idle_minutes: without a request before the child begins or goes on.
        settings: of server and child, by their dotted keys.
        more: flags.
    """
    port, log = world.free_port(), folder / "server.log"
    learning = ("--learn", "idle", "--idle-minutes", str(idle_minutes))
    command = world.ours(Path(reference.TARGET), Path(reference.DRAFT), folder / "data", port, *learning, *more)
    variables = {variable_of(key): str(value) for key, value in settings.items()}
    with world.server(command, port, log, variables) as url:
        yield LiveServer(url, port, log, DataDirectory(folder / "data"))
