"""A real server and raw sockets: no client holds a connection for long, and every refusal is OpenAI's error object."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest
from asgi import echo
from hypothesis import given, settings
from hypothesis import strategies as st
from mortal import HANGS

from draftloop.config import Serve
from draftloop.serving import connections
from draftloop.serving.connections import LAST_WORDS, uvicorn_settings

from .conftest import ServeApp

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
SMALL = Serve(max_body_mb=1)
MOMENT = 0.2


def talk(port: int, *sent: bytes) -> bytes:
    """All that the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=HANGS) as connection:
        with suppress(ConnectionResetError, BrokenPipeError):  # it may be closed by now
            for data in sent:
                connection.sendall(data)
        return read_to_end(connection)


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):  # how a connection ends that is cut off
        while data := connection.recv(65536):
            received += data
    return received


def send_for_ever(connection: socket.socket, data: bytes) -> None:
    while True:
        connection.sendall(data)


@pytest.fixture(scope="module")
def echo_port(served: ServeApp) -> int:
    return served(echo, SMALL)


def status_and_error(received: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


@pytest.mark.parametrize(
    "sent",
    [[], [b"POST / HT"], [HEAD], [HEAD + b"X: "], [HEAD + b"Content-Length: 2\r\n\r\n{}", b"POST / HT"]],
    ids=["nothing", "line", "headers", "header", "second request"],
)
def test_a_head_that_does_not_come_ends_the_connection(served: ServeApp, sent: list[bytes]) -> None:
    received = talk(served(echo, Serve(head_seconds=MOMENT, idle_seconds=1)), *sent)
    assert received == b"" or received.endswith(b"\r\n\r\n{}")


def test_a_body_that_does_not_come_is_a_408(served: ServeApp) -> None:
    received = talk(served(echo, Serve(body_seconds=MOMENT)), HEAD + b"Content-Length: 10\r\n\r\nabc")
    status, error = status_and_error(received)
    assert (status, error["code"]) == (408, "request_timeout")


def test_an_idle_connection_ends_and_a_used_one_stays(served: ServeApp) -> None:
    request = HEAD + b"Content-Length: 2\r\n\r\n{}"
    assert talk(served(echo, Serve(idle_seconds=1)), request, request).count(b"200 OK") == 2


def test_a_reader_who_does_not_read_is_cut_off_and_the_application_hears_of_it(served: ServeApp) -> None:
    left = threading.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        leaves = asyncio.ensure_future(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not leaves.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        left.set()

    with socket.create_connection(
        ("127.0.0.1", served(endless, Serve(write_seconds=MOMENT))), timeout=HANGS
    ) as connection:
        connection.sendall(HEAD + b"Content-Length: 0\r\n\r\n")
        assert left.wait(HANGS)
        assert len(read_to_end(connection)) < 64 << 20


def test_a_reader_who_never_takes_the_end_of_an_answer_holds_no_connection(served: ServeApp) -> None:
    async def large(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b"x" * (16 << 20)})

    port = served(large, Serve(write_seconds=MOMENT))
    with socket.create_connection(("127.0.0.1", port), timeout=HANGS) as connection:
        connection.sendall(HEAD + b"Content-Length: 0\r\n\r\n")
        with pytest.raises(OSError):  # noqa: PT011 (reset, or a broken pipe)
            send_for_ever(connection, b"x")
        assert len(read_to_end(connection)) < 16 << 20


def test_a_large_answer_for_a_client_that_reads_comes_whole(served: ServeApp) -> None:
    async def large(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * (8 << 20)})

    assert len(httpx.get(f"http://127.0.0.1:{served(large, Serve())}/").content) == 8 << 20


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # https
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (HEAD + b"Content-Length: x\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD + b"X: " + b"x" * 300_000, 431),
        (b"GET /" + b"x" * 300_000, 431),
    ],
    ids=["tls", "no host", "length", "chunk", "header", "path"],
)
def test_what_is_no_http_is_refused(served: ServeApp, sent: bytes, status: int) -> None:
    found, error = status_and_error(talk(served(echo, Serve()), sent))
    assert (found, error["type"]) == (status, "invalid_request_error")


def test_too_large_a_body_is_refused_and_the_client_hears_of_it(served: ServeApp) -> None:
    port = served(echo, SMALL)
    for content in (b"x" * (4 << 20), iter([b"x" * (1 << 20)] * 4)):
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", content=content, timeout=HANGS)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_refused_body_that_never_ends_ends_with_the_connection(
    served: ServeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_SLACK", 0.0)
    port = served(echo, Serve(body_seconds=MOMENT, max_body_mb=1))
    chunk = b"%x\r\n%s\r\n" % (1 << 20, b"x" * (1 << 20))
    with socket.create_connection(("127.0.0.1", port), timeout=HANGS) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 2)
        with pytest.raises(OSError):  # noqa: PT011 (reset, or a broken pipe)
            send_for_ever(connection, chunk)


def test_connections_beyond_the_most_are_refused(served: ServeApp) -> None:
    port = served(echo, Serve(max_connections=8))
    held = [socket.create_connection(("127.0.0.1", port), timeout=HANGS) for _ in range(8)]
    status, error = status_and_error(talk(port))
    assert (status, error["type"]) == (503, "server_error")
    held.pop().close()
    request = HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}"
    while b"503" in (received := talk(port, request)):
        pass  # until the server has heard of the one that went
    assert b"200 OK" in received
    for connection in held:
        connection.close()


def test_the_openai_client_understands_a_refusal(served: ServeApp) -> None:
    port = served(echo, SMALL)
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIStatusError, match=r"raise serve\.max_body_mb") as caught,
    ):
        client.completions.create(model="default", prompt="x" * (2 << 20))
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")


@given(
    junk=st.lists(st.sampled_from([HEAD, b"\r\n\r\n", b"Content-Length: 3\r\n"]) | st.binary(max_size=40), max_size=6)
)
@settings(max_examples=50, deadline=None)
def test_after_any_bytes_the_server_serves_on(echo_port: int, junk: list[bytes]) -> None:
    with socket.create_connection(("127.0.0.1", echo_port), timeout=HANGS) as connection:
        connection.sendall(b"".join(junk))
        connection.shutdown(socket.SHUT_WR)
        read_to_end(connection)
    assert httpx.post(f"http://127.0.0.1:{echo_port}/v1/completions", content=b"abc").content == b"abc"


def test_uvicorn_is_told_to_log_no_request_and_to_believe_no_header() -> None:
    told = uvicorn_settings(echo, Serve(port=9, grace_seconds=7, idle_seconds=8))
    assert told["port"] == 9
    assert (told["timeout_graceful_shutdown"], told["timeout_keep_alive"]) == (7 + LAST_WORDS, 8)
    assert told["access_log"] is told["proxy_headers"] is told["server_header"] is False
