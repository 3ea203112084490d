"""Clients of a server by hand: a request as its bytes, an answer as it came, what /metrics says. Knows no fault."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

from mortal import HANGS
from server import Server

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_POLL = 0.02


@dataclass(frozen=True)
class Reply:
    """A whole answer of HTTP. `body` is empty where the method was HEAD."""

    status: int
    kind: str
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The output of a completion that did not stream."""
        return str(self.json["choices"][0]["text"])


def request(path: str, fields: Any, *headers: str, method: str = "POST", host: str = "localhost") -> bytes:
    """The bytes of a request, whose connection ends with it; `fields` are its JSON, or its bytes."""
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


def connect(server: Server, receive_buffer: int | None = None) -> socket.socket:
    """A connection; with `receive_buffer`, one that takes few bytes before it is read."""
    connection = socket.socket()
    connection.settimeout(HANGS)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(server.address)
    return connection


def reply_on(connection: socket.socket, method: str = "POST") -> Reply:
    """The answer on a connection.

    Raises:
        http.client.HTTPException: it is none, or it was cut off.
        OSError: so was the connection.
    """
    with closing(HTTPResponse(connection, method=method)) as response:
        response.begin()
        return Reply(response.status, response.headers.get_content_type(), response.read())


def ask(server: Server, path: str, fields: Any) -> Reply:
    """What a server answers. Raises as `reply_on`."""
    with connect(server) as connection:
        connection.sendall(request(path, fields))
        return reply_on(connection)


def metrics(server: Server) -> str:
    """What /metrics says."""
    with connect(server) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return reply_on(connection).body.decode()


def metric(server: Server, name: str) -> int:
    """The sum of a count over all of its labels that fit; `name` is without the prefix, and may have a label."""
    found = re.findall(rf"^draftloop:{re.escape(name)}\S* (\S+)$", metrics(server), re.MULTILINE)
    assert found, name
    return int(sum(map(float, found)))


def is_idle(server: Server) -> bool:
    """Whether no request is decoded and none waits."""
    return metric(server, "num_requests_running") == metric(server, "num_requests_waiting") == 0


def until(condition: Callable[[], bool], what: str, found: Callable[[], object] = str) -> None:
    """Wait for what must come; where it does not, `found` says what there is."""
    deadline = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < deadline, f"it never came to that: {what}; {found()}"
        time.sleep(_POLL)


def until_metric(server: Server, name: str, number: int) -> None:
    """Wait until a count has come to `number`."""
    until(lambda: metric(server, name) == number, f"{name} is {number}")
