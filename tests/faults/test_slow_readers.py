"""Clients that do not read what they asked for: others are served, memory stays bounded, and they are cut off."""

from __future__ import annotations

import socket
import subprocess
from contextlib import ExitStack, suppress
from functools import partial

import pytest
from clients import CHAT, COMPLETIONS, ask, connect, is_idle, metric, request, until, until_metric
from fault_table import Row
from server import Server

pytestmark = pytest.mark.row("slow readers")

GOOD = {"prompt": "the target and the draft", "max_tokens": 8, "temperature": 0}
SLOTS = 4  # of the fixture `server`
ENDLESS = {"max_tokens": 3000, "temperature": 0, "stream": True, "logprobs": True, "top_logprobs": 20}  # megabytes
SMALL = 4096  # bytes that the kernel takes for a client that does not read
MOST_SENT = 4 << 20  # bytes on a connection, each way
MOST_MB = 150
"""Growth of the server's memory. Every connection of the second test asks for hundreds of megabytes."""
CANCELLED = 'request_success_total{finished_reason="cancelled"}'


def resident_mb(server: Server) -> float:
    """Memory of a server's process."""
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(server.process.pid)], capture_output=True, check=True)
    return int(shown.stdout) / 1024


def read_to_the_end(connection: socket.socket) -> int:
    """How many bytes there still are."""
    count = 0
    with suppress(ConnectionResetError):  # how a connection ends that is cut off
        while data := connection.recv(65536):
            count += len(data)
    return count


def send_all_that_fits(connection: socket.socket, data: bytes) -> None:
    """As much as server and kernel take until the server reads no more, and MOST_SENT at most."""
    connection.setblocking(False)
    with suppress(BlockingIOError):
        for _ in range(MOST_SENT // len(data)):
            connection.send(data)


def is_cut_off(connection: socket.socket) -> bool:
    """Whether the server has ended a connection, found without reading from it."""
    connection.setblocking(False)
    try:
        connection.send(b"x")
    except BlockingIOError:  # the server reads no more
        return False
    except ConnectionError:
        return True
    return False


@pytest.mark.slow
def test_who_does_not_read_a_stream_stops_nobody_and_is_cut_off(server: Server, row: Row) -> None:
    rounds, readers = row.count(1, 10), row.count(2, SLOTS - 1)
    text = ask(server, COMPLETIONS, GOOD).text
    before, most = resident_mb(server), 0.0
    for number in range(rounds):
        cancelled = metric(server, CANCELLED)
        with ExitStack() as stack:
            connections = [stack.enter_context(connect(server, SMALL)) for _ in range(readers)]
            for place, connection in enumerate(connections):
                messages = [{"role": "user", "content": f"reader {number} {place}"}]
                connection.sendall(request(CHAT, ENDLESS | {"messages": messages}))
            until_metric(server, "num_requests_running", readers)
            assert ask(server, COMPLETIONS, GOOD).text == text
            until(lambda: is_idle(server), "rest")
            most = max(most, resident_mb(server))
            assert metric(server, CANCELLED) == cancelled + readers
            assert max(read_to_the_end(connection) for connection in connections) < MOST_SENT
    assert most < before + MOST_MB
    row.did(rounds * readers, "streams that nobody read")
    row.notes.append(f"memory grew by {most - before:.0f} MB with streams that nobody read")


def test_who_asks_without_reading_stops_nobody_and_is_cut_off(server: Server, row: Row) -> None:
    readers = row.count(4, 16)
    text = ask(server, COMPLETIONS, GOOD).text
    before, most = resident_mb(server), 0.0
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(server, SMALL)) for _ in range(readers)]
        for connection in connections:
            send_all_that_fits(connection, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        for connection in connections:
            assert ask(server, COMPLETIONS, GOOD).text == text
            until(partial(is_cut_off, connection), "the end of its connection")
            most = max(most, resident_mb(server))
    assert most < before + MOST_MB
    row.did(readers, "connections with thousands of requests whose answers nobody read")
