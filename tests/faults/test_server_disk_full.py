"""A server whose disk is full from the start, and again later: it answers on, counts, and captures when it can."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from clients import COMPLETIONS, ask, metric, until, until_metric
from fault_table import Row
from log_files import read_captured
from server import Server

from draftloop.config import Models

pytestmark = pytest.mark.row("a server on a full disk")

PRELUDE = """
import os, resource, signal, sys
from pathlib import Path

def limit(*_):  # no file of this process may grow past as many bytes as the file `room` says
    room = Path(sys.argv[sys.argv.index("--data-dir") + 1]).with_name("room").read_text()
    soft = resource.RLIM_INFINITY if room == "all" else int(room)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
    os.write(2, f"room: {room}\\n".encode())

signal.signal(signal.SIGUSR1, limit)
limit()
"""
CAPTURED = "records_captured_total"
DROPPED = 'records_dropped_total{reason="write_failed"}'


class Disk:
    """What a server finds on its disk."""

    def __init__(self, data: Path) -> None:
        self._room = data.with_name("room")
        self.log = data / "failures" / "failures.jsonl"

    def has(self, room: int | str) -> None:
        """So many bytes for each file, or `all`, for a server that starts."""
        self._room.write_text(str(room))

    def has_now(self, server: Server, room: int | str) -> None:
        """The same for one that runs."""
        before = server.said.count(f"room: {room}")
        self.has(room)
        server.process.send_signal(signal.SIGUSR1)
        until(lambda: server.said.count(f"room: {room}") > before, "another size of the disk")


def answered(server: Server, count: int, about: str) -> list[str]:
    """Let so many answers end whose prompts begin alike; the prompts."""
    prompts = [f"{about}, secret {number}" for number in range(count)]
    for prompt in prompts:
        assert ask(server, COMPLETIONS, {"prompt": prompt, "max_tokens": 6}).status == 200
    return prompts


def test_a_server_on_a_full_disk_answers_on_and_captures_again_when_there_is_room(
    tmp_path: Path, small_models: Models, row: Row
) -> None:
    answers, times = row.count(3, 20), row.count(2, 25)
    disk, data = Disk(tmp_path / "data"), tmp_path / "data"
    flags = ("--model", small_models.target, "--draft-model", small_models.draft, "--num-draft-tokens", "3")
    kept: list[str] = []
    disk.has(0)
    with Server(data, *flags, prelude=PRELUDE) as server:
        for turn in range(times):
            before = disk.log.read_bytes() if turn else b""
            answered(server, answers, f"dropped {turn}")
            until_metric(server, DROPPED, (turn + 1) * answers)
            assert disk.log.read_bytes() == before
            assert metric(server, CAPTURED) == len(kept)
            disk.has_now(server, "all")
            kept += answered(server, answers, f"kept {turn}")
            until_metric(server, CAPTURED, len(kept))
            half_a_line = disk.log.stat().st_size + 100
            disk.has_now(server, 1 if turn % 2 else half_a_line)
        assert server.stop() == 0
    assert [record.prompt for record in read_captured(data)] == kept
    assert any("records are not in the log" in line for line in server.said)
    assert not any("secret" in line for line in server.said)
    row.did(times * answers, "answers without room for their records")
    row.did(len(kept), "answers captured between them")
