"""Who gets through to the application, and what the others are told."""

from __future__ import annotations

from typing import Any

import pytest
from asgi import HOST, Answer, ask, scope_of
from hypothesis import given
from hypothesis import strategies as st

from draftloop.config import Serve
from draftloop.serving.api_error import ApiError
from draftloop.serving.api_keys import Client, Keys
from draftloop.serving.guard import guarded
from draftloop.serving.metrics import Metrics

KEY = b"ann-0123456789abcdef"
BEARER = (b"authorization", b"Bearer " + KEY)
PAGE = (b"origin", b"https://chat.example.org")
PREFLIGHT = (b"access-control-request-method", b"POST")
SERVE = Serve(allowed_origins=("https://chat.example.org",), max_body_mb=1)


class Application:
    """Remembers who asked; raises what it is given, or answers with a status in plain text."""

    def __init__(self, raises: Exception | None = None, status: int = 200) -> None:
        self.clients: list[Client] = []
        self.raises = raises
        self.status = status

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.clients.append(scope["state"]["client"])
        if self.raises:
            raise self.raises
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"x-own", b"1")]})
        await send({"type": "http.response.body", "body": b"ok"})


def asked(app: Application, *headers: tuple[bytes, bytes], chunks: list[bytes] | None = None, **scope: str) -> Answer:
    door = guarded(app, SERVE, Keys([("ann", KEY.decode())]), Metrics())
    return ask(door, scope_of(headers, **scope), chunks or [b""])


def test_a_request_with_a_key_gets_through_and_is_known_by_it() -> None:
    app = Application()
    assert asked(app, HOST, BEARER).body == b"ok"
    assert app.clients == [Client(1, "ann")]


def test_without_keys_everybody_is_the_same_client() -> None:
    app = Application()
    assert ask(guarded(app, SERVE, None, Metrics()), scope_of([HOST, BEARER])).status == 200
    assert app.clients == [Client(0, None)]


def test_health_needs_no_key_but_a_host() -> None:
    app = Application()
    assert asked(app, HOST, path="/health").status == 200
    assert asked(app, (b"host", b"evil.example"), path="/health").status == 403
    assert len(app.clients) == 1


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ([HOST], 401, "invalid_api_key"),
        ([BEARER], 403, "host_not_allowed"),
        ([HOST, BEARER, (b"origin", b"https://evil.example")], 403, "origin_not_allowed"),
        ([HOST, (b"origin", b"https://evil.example"), PREFLIGHT], 403, "origin_not_allowed"),
    ],
)
def test_nobody_else_gets_through(headers: list[tuple[bytes, bytes]], status: int, code: str) -> None:
    app = Application()
    for method in ("POST", "OPTIONS"):
        answer = asked(app, *headers, method=method)
        assert (answer.status, answer.error["code"]) == (status, code)
        assert not [name for name in answer.headers if name.startswith(b"access-control")]
    assert app.clients == []


def test_a_browser_may_ask_first_and_has_no_key_then() -> None:
    app = Application()
    answer = asked(app, HOST, PAGE, PREFLIGHT, method="OPTIONS")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers[b"access-control-allow-origin"] == PAGE[1]
    assert answer.headers[b"access-control-allow-headers"] == b"Authorization, *"
    assert app.clients == []


def test_a_listed_page_may_read_answers_and_errors() -> None:
    for app, headers, chunks, status in [
        (Application(), [BEARER], [b""], 200),
        (Application(), [], [b""], 401),
        (Application(), [BEARER], [b"x" * (1 << 20), b"x"], 413),
        (Application(status=404), [BEARER], [b""], 404),
        (Application(ApiError(429, "full", headers={"Retry-After": "1"})), [BEARER], [b""], 429),
    ]:
        answer = asked(app, HOST, PAGE, *headers, chunks=chunks)
        assert answer.status == status
        assert answer.headers[b"access-control-allow-origin"] == PAGE[1]
        assert answer.headers[b"vary"] == b"Origin"


def test_the_key_is_asked_for_before_the_body_is_read() -> None:
    assert asked(Application(), HOST, chunks=[b"x" * (2 << 20)]).status == 401


def test_only_http_and_the_servers_own_start_get_through() -> None:
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    for kind in ("lifespan", "websocket"):
        ask(guarded(app, SERVE, None, Metrics()), {**scope_of(), "type": kind})
    assert seen == ["lifespan"]


names = st.sampled_from([b"host", b"origin", b"authorization", b"content-length"]) | st.binary(max_size=10)
contents = st.sampled_from([b"localhost", b"Bearer ", KEY, PAGE[1]]) | st.binary(max_size=30)


@given(headers=st.lists(st.tuples(names, contents), max_size=8), body=st.binary(max_size=20))
def test_whatever_the_headers_are_there_is_one_answer(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    answer = asked(Application(), *headers, chunks=[body])
    assert answer.status in (200, 401, 403, 413)
    assert answer.status == 200 or set(answer.error) == {"message", "type", "param", "code"}
