"""Two servers on one data directory at once, under load: both capture all that they answer, once and whole."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clients import CHAT, COMPLETIONS, ask, metric, until_metric
from fault_table import Row
from log_files import read_captured
from server import Server

from draftloop.config import Models

pytestmark = pytest.mark.row("two servers on one log")

CLIENTS = 3  # of each server
WAVE = 20  # requests to each, after which both may catch up: what waits for the log or for the draft is bounded


def ask_somehow(server: Server, text: str, number: int) -> None:
    """Chats and completions, whole and streamed, with a draft and without."""
    fields = {"max_tokens": 4 + number % 9, "temperature": number % 2, "num_draft_tokens": 3 if number % 5 else 0}
    if number % 3:
        reply = ask(server, COMPLETIONS, fields | {"prompt": text, "stream": number % 4 == 0})
    else:
        reply = ask(server, CHAT, fields | {"messages": [{"role": "user", "content": text}]})
    assert reply.status == 200


@pytest.mark.slow
def test_two_servers_on_one_data_directory_capture_everything_once(
    tmp_path: Path, small_models: Models, row: Row
) -> None:
    waves = row.count(1, 50)
    flags = ("--model", small_models.target, "--draft-model", small_models.draft, "--num-draft-tokens", "3")
    asked: list[str] = []
    with Server(tmp_path, *flags) as one, Server(tmp_path, *flags) as other, ThreadPoolExecutor(2 * CLIENTS) as clients:
        for wave in range(waves):
            wanted = [(server, f"{server.url} {wave} {n}", n) for n in range(WAVE) for server in (one, other)]
            list(clients.map(lambda each: ask_somehow(*each), wanted))
            asked += [text for _, text, _ in wanted]
            for server in (one, other):
                until_metric(server, "records_captured_total", (wave + 1) * WAVE)
        assert [metric(server, "records_dropped_total") for server in (one, other)] == [0, 0]
        assert [server.stop() for server in (one, other)] == [0, 0]
    records = read_captured(tmp_path)
    assert Counter(record.prompt for record in records) == Counter(asked)
    assert len({record.id for record in records}) == len(records)
    row.did(2 * waves * WAVE, "answers of both")
