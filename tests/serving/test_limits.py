"""What a request may send: how much is read, and when it is refused."""

from __future__ import annotations

import asyncio

import pytest
from asgi import HOST, ask, echo, scope_of
from hypothesis import given
from hypothesis import strategies as st

from draftloop.config import Serve
from draftloop.serving.error_middleware import Answered
from draftloop.serving.limits import MAX_HEAD_BYTES, MAX_HEADERS, Limits, declared_length
from draftloop.serving.metrics import Metrics

SERVE = Serve(max_body_mb=1)
MB = 1 << 20
APP = Answered(Limits(echo, SERVE), Metrics())


@pytest.mark.parametrize("chunks", [[b"abc"], [b"a", b"", b"bc"], [b""], [b"x" * MB], [b"x" * (MB // 4)] * 4])
def test_a_body_comes_in_one_piece(chunks: list[bytes]) -> None:
    assert ask(APP, scope_of(), chunks).body == b"".join(chunks)


@pytest.mark.parametrize(
    ("headers", "chunks"),
    [
        ([], [b"x" * (MB + 1)]),
        ([], [b"x" * MB, b"x", None]),  # refused before it has all come
        ([(b"Content-Length", b"%d" % (MB + 1))], [None]),  # and before any of it has
        ([(b"content-length", b"5"), (b"content-length", b"99999999999")], [None]),
        ([(b"content-length", b"5")], [b"x" * (MB + 1)]),
    ],
)
def test_a_body_beyond_the_limit_is_refused(headers: list[tuple[bytes, bytes]], chunks: list[bytes | None]) -> None:
    answer = ask(APP, scope_of([HOST, *headers]), chunks)
    assert answer.status == 413
    assert answer.error == {
        "message": "a body of more than 1 MB; send a shorter request, or raise serve.max_body_mb",
        "type": "invalid_request_error",
        "param": None,
        "code": "request_too_large",
    }


def test_a_body_that_does_not_come_is_refused() -> None:
    slow = Answered(Limits(echo, Serve(body_seconds=0.01)), Metrics())
    answer = ask(slow, scope_of(), [b"a", None])
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert answer.headers[b"connection"] == b"close"


def test_time_that_the_answer_takes_is_not_that_of_the_body() -> None:
    async def thinks(scope, receive, send):
        await asyncio.sleep(0.1)
        await echo(scope, receive, send)

    assert ask(Limits(thinks, Serve(body_seconds=0.01)), scope_of(), [b"abc"]).body == b"abc"


def test_the_application_is_not_asked_for_a_client_that_left() -> None:
    for chunks in ([], [b"a", b"b"]):
        assert ask(APP, scope_of(), chunks, more_to_come=True).status == 0


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ([(b"x-%d" % number, b"") for number in range(MAX_HEADERS)], "/"),
        ([(b"cookie", b"x" * MAX_HEAD_BYTES)], "/"),
        ([], "/" + "x" * MAX_HEAD_BYTES),
    ],
    ids=["number", "size", "path"],
)
def test_too_long_a_head_is_refused(headers: list[tuple[bytes, bytes]], path: str) -> None:
    answer = ask(APP, scope_of([HOST, *headers], path=path))
    assert (answer.status, answer.error["code"]) == (431, "request_headers_too_large")


def test_after_the_body_an_application_hears_of_the_client() -> None:
    heard = []

    async def listens(scope, receive, send):
        heard.extend([await receive(), await receive()])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    ask(Limits(listens, SERVE), scope_of(), [b"a", b"b"])
    assert heard == [{"type": "http.request", "body": b"ab", "more_body": False}, {"type": "http.disconnect"}]


@given(value=st.binary(max_size=30) | st.integers(-5, 10**25).map(lambda number: str(number).encode()))
def test_any_bytes_can_be_a_content_length(value: bytes) -> None:
    length = declared_length([(b"content-length", value)])
    assert length == (int(value) if value.strip().isdigit() and len(value.strip()) < 20 else 0)
