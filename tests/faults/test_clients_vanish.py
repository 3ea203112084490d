"""Clients that vanish at every stage of a request: it ends, what there was is recorded, others are served."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from clients import COMPLETIONS, ask, connect, is_idle, metric, metrics, request, until, until_metric
from fault_table import Row
from server import Server

from draftloop.data.records import Record
from draftloop.data_directory import DataDirectory

pytestmark = pytest.mark.row("clients that vanish")

GOOD = {"prompt": "the target and the draft", "max_tokens": 8, "temperature": 0}
LONG = 3000  # tokens, which take many seconds: no answer ends before its client
SLOTS = 4  # of the fixture `server`
ENDED = "request_success_total"
CANCELLED = 'request_success_total{finished_reason="cancelled"}'


def leave(connection: socket.socket, choose: random.Random) -> None:
    """Close a connection in order, or with a reset."""
    if choose.random() < 0.5:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def has_room(server: Server) -> bool:
    """Whether it takes one more connection."""
    return "too many connections" not in metrics(server)


def long_answer(prompt: str, stream: bool) -> dict[str, object]:
    return {"prompt": prompt, "max_tokens": LONG, "temperature": 0, "stream": stream}


def receive_until(connection: socket.socket, wanted: bytes) -> None:
    received = b""
    while wanted not in received:
        data = connection.recv(4096)
        assert data, received
        received += data


def part_of(sent: bytes, stage: str, choose: random.Random) -> bytes:
    """A request up to a place within a stage of it."""
    line, head = sent.index(b"\r\n") + 2, sent.index(b"\r\n\r\n") + 4
    first, last = {"request line": (0, line), "headers": (line, head), "body": (head, len(sent))}[stage]
    return sent[: choose.randrange(first, last)]


@pytest.fixture(scope="module")
def greedy(server: Server) -> Iterator[Callable[[], None]]:
    """Lets the next client ask what one has asked before all of this; the answer is the same."""
    ask(server, COMPLETIONS, GOOD)  # from now on its prompt is in the cache
    text = ask(server, COMPLETIONS, GOOD).text

    def check() -> None:
        assert ask(server, COMPLETIONS, GOOD).text == text

    yield check
    until(lambda: is_idle(server), "rest")


def record_of(server: Server, prompt: str) -> Record:
    """The record of a prompt that is asked a single time, once there is one."""
    found: list[Record] = []

    def is_there() -> bool:
        found[:] = [record for record in DataDirectory(server.data).log.records() if record.prompt == prompt]
        return bool(found)

    until(is_there, "its record")
    (record,) = found
    return record


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("stage", ["request line", "headers", "body"])
def test_who_vanishes_within_a_request_leaves_nothing_behind(
    server: Server, greedy: Callable[[], None], stage: str, stream: bool, row: Row
) -> None:
    times, choose = row.count(5, 100), random.Random(f"{stage} {stream}")
    before = metric(server, ENDED)
    for _ in range(times):
        with connect(server) as connection:
            sent = request(COMPLETIONS, GOOD | {"stream": stream})
            connection.sendall(part_of(sent, stage, choose))
            leave(connection, choose)
    until(lambda: has_room(server), "room for a connection")  # it may not have seen yet that they left
    greedy()
    until(lambda: is_idle(server), "rest")
    assert metric(server, ENDED) == before + 1
    row.did(times, f"clients that vanished within the {stage}")


@pytest.mark.parametrize("stream", [True, False])
def test_who_vanishes_in_mid_answer_is_recorded_as_cancelled(
    server: Server, greedy: Callable[[], None], stream: bool, row: Row
) -> None:
    times, choose = row.count(2, 50), random.Random(stream)
    for number in range(times):
        before, tokens = metric(server, CANCELLED), metric(server, "generation_tokens_total")
        prompt = f"mid-answer {stream} {number}"
        with connect(server) as connection:
            connection.sendall(request(COMPLETIONS, long_answer(prompt, stream)))
            if stream:
                receive_until(connection, b"data: ")
            else:
                until(lambda: metric(server, "generation_tokens_total") > tokens, "a token")  # noqa: B023 - of now
            leave(connection, choose)
        until_metric(server, CANCELLED, before + 1)
        assert is_idle(server)
        greedy()
        record = record_of(server, prompt)
        assert record.finish == "cancelled"
        assert 0 < len(record.target_output) < LONG
    row.did(times, "clients that vanished in mid-answer")


@pytest.mark.parametrize("stream", [True, False])
def test_who_vanishes_at_the_end_of_an_answer_has_a_record_of_all_of_it(
    server: Server, greedy: Callable[[], None], stream: bool, row: Row
) -> None:
    times, choose = row.count(2, 50), random.Random(stream)
    for number in range(times):
        prompt = f"last chunk {stream} {number}"
        with connect(server) as connection:
            connection.sendall(request(COMPLETIONS, GOOD | {"prompt": prompt, "stream": stream}))
            receive_until(connection, b'"finish_reason":"length"' if stream else b"H")
            leave(connection, choose)
        greedy()
        record = record_of(server, prompt)
        assert record.finish == "length"
        assert len(record.target_output) == GOOD["max_tokens"]
    until(lambda: is_idle(server), "rest")
    row.did(times, "clients that vanished at the last chunk")


@pytest.mark.parametrize("stream", [True, False])
def test_who_vanishes_while_waiting_for_a_turn_takes_none(
    server: Server, greedy: Callable[[], None], stream: bool, row: Row
) -> None:
    times, choose = row.count(1, 10), random.Random(stream)
    for number in range(times):
        before = metric(server, CANCELLED)
        with ExitStack() as stack:
            busy = [stack.enter_context(connect(server)) for _ in range(SLOTS)]
            for place, connection in enumerate(busy):
                connection.sendall(request(COMPLETIONS, long_answer(f"busy {stream} {number} {place}", stream=True)))
                receive_until(connection, b"data: ")
            waiting = [stack.enter_context(connect(server)) for _ in range(SLOTS)]
            for connection in waiting:
                connection.sendall(request(COMPLETIONS, long_answer("waiting", stream)))
            until_metric(server, "num_requests_waiting", SLOTS)
            for connection in [*waiting, *busy]:
                leave(connection, choose)
        until(lambda: is_idle(server), "rest")
        assert metric(server, CANCELLED) >= before + SLOTS
        greedy()
        finishes = {record_of(server, f"busy {stream} {number} {place}").finish for place in range(SLOTS)}
        assert finishes == {"cancelled"}
    row.did(times * SLOTS, "clients that vanished before their first token")
