"""A server is killed by SIGKILL while it answers: what was captured is in the log, once, and the next server serves."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import pytest
from clients import COMPLETIONS, ask, metric, until, until_metric
from fault_table import Row
from log_files import read_captured
from server import Server

from draftloop.config import Models

pytestmark = pytest.mark.row("kill -9 of a server that answers")

CLIENTS = 3


class Load:
    """Clients who ask one thing after another until their server is gone.

    Attributes:
        asked: prompts so far, each a single time.
        answered: tokens of the output, by the prompt of every whole answer.
    """

    def __init__(self, server: Server, seed: int) -> None:
        self.asked: set[str] = set()
        self.answered: dict[str, int] = {}
        names = [f"{seed}, {client}" for client in range(CLIENTS)]
        self.threads = [threading.Thread(target=self._client, args=(server, name)) for name in names]

    def _client(self, server: Server, name: str) -> None:
        choose = random.Random(name)
        with suppress(OSError, HTTPException):  # how a client learns that its server was killed
            while True:
                prompt = f"{name}, {len(self.asked)}: the target reads"
                self.asked.add(prompt)
                temperature = choose.choice([0, 0.7])
                fields = {"prompt": prompt, "max_tokens": choose.randrange(1, 24), "temperature": temperature}
                reply = ask(server, COMPLETIONS, fields)
                assert reply.status == 200
                self.answered[prompt] = reply.json["usage"]["completion_tokens"]


@contextmanager
def load_on(server: Server, seed: int) -> Iterator[Load]:
    load = Load(server, seed)
    for thread in load.threads:
        thread.start()
    try:
        yield load
    finally:
        server.process.kill()
        for thread in load.threads:
            thread.join()


def killed_at_work(server: Server, seed: int, in_turn: bool, row: Row) -> Load:
    """Kill a server under load; returns what it was asked, and of the answers those that were captured before."""
    choose = random.Random(-seed)
    with load_on(server, seed) as load:
        # 1. Some answers, and all of their records.
        wanted = choose.randrange(3, 15)
        until(lambda: len(load.answered) >= wanted, "answers")
        answered, began = dict(load.answered) if in_turn else {}, time.monotonic()
        if in_turn:
            ended = metric(server, "request_success_total")
            until(lambda: metric(server, "records_captured_total") >= ended, "their records")
            row.times["from an answer to its record, others in between"].append(time.monotonic() - began)
        # 2. Some more, and no time for the record of the last one.
        more = len(load.answered) + choose.randrange(4)
        until(lambda: len(load.answered) >= more, "more answers")
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    load.answered = answered
    return load


def test_what_was_captured_before_a_kill_is_in_the_log_and_the_next_server_serves(
    tmp_path: Path, small_models: Models, row: Row
) -> None:
    kills = row.count(3, 50)
    flags = ("--model", small_models.target, "--draft-model", small_models.draft, "--num-draft-tokens", "3")
    asked: set[str] = set()
    answered: dict[str, int] = {}
    for seed in range(kills):
        in_turn = seed % 3 != 1  # else there are batches, of which the draft reads the outputs when all is quiet
        with Server(tmp_path, *flags, "--max-concurrent", "1" if in_turn else str(CLIENTS)) as server:
            load = killed_at_work(server, seed, in_turn, row)
        asked |= load.asked
        answered |= load.answered
        records = read_captured(tmp_path)
        times = Counter(record.prompt for record in records)
        assert times.keys() <= asked
        assert max(times.values()) == 1
        length = {record.prompt: len(record.target_output) for record in records}
        assert {prompt: length.get(prompt) for prompt in answered} == answered
        assert all(record.finish != "cancelled" for record in records)
    with Server(tmp_path, *flags) as server:
        assert ask(server, COMPLETIONS, {"prompt": "the last one", "max_tokens": 4}).status == 200
        until_metric(server, "records_captured_total", 1)
        assert server.stop() == 0
    assert [record.prompt for record in read_captured(tmp_path)][len(records) :] == ["the last one"]
    row.did(kills, "kills")
    row.did(len(answered), "answers captured before them")
