"""Every request gets a whole answer, and no log has what it said."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from asgi import ask, scope_of
from samples import value
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from draftloop.serving.api_error import ApiError
from draftloop.serving.error_middleware import Answered
from draftloop.serving.metrics import Metrics

FULL = ApiError(429, "the queue is full", code="queue_full", headers={"Retry-After": "2"})


def failing(error: BaseException, begun: bool = False) -> Any:
    async def app(scope, receive, send):
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise error

    return app


def test_an_error_of_ours_is_openais_error_object() -> None:
    answer = ask(Answered(failing(FULL), Metrics()), scope_of())
    assert answer.status == 429
    assert answer.headers == {
        b"content-type": b"application/json",
        b"content-length": str(len(answer.body)).encode(),
        b"retry-after": b"2",
    }
    assert answer.error == {
        "message": "the queue is full",
        "type": "rate_limit_error",
        "param": None,
        "code": "queue_full",
    }


def test_any_other_error_is_a_500_whose_message_is_logged_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        answer = ask(Answered(failing(ValueError("my prompt")), Metrics()), scope_of())
    assert (answer.status, answer.error["type"]) == (500, "server_error")
    assert "ValueError while answering '/v1/completions':" in caplog.text
    assert "in app" in caplog.text
    assert "my prompt" not in caplog.text + str(answer)


@pytest.mark.parametrize(
    ("path", "method", "status", "kind"),
    [
        ("/nope", "GET", 404, "not_found_error"),
        ("/boom", "POST", 405, "invalid_request_error"),
        ("/boom", "GET", 500, "server_error"),
        ("/gone", "GET", 410, "invalid_request_error"),
    ],
)
def test_an_error_of_starlette_is_openais_error_object_too(path: str, method: str, status: int, kind: str) -> None:
    async def boom(request: Request) -> Response:
        raise ValueError("my prompt")

    async def gone(request: Request) -> Response:
        raise HTTPException(410)

    metrics = Metrics()
    app = Answered(Starlette(routes=[Route("/boom", boom), Route("/gone", gone)]), metrics)
    answer = ask(app, {**scope_of(path=path, method=method), "app": None, "root_path": ""})
    assert (answer.status, answer.error["type"]) == (status, kind)
    assert answer.headers[b"content-length"] == str(len(answer.body)).encode()
    assert (b"allow" in answer.headers) == (status == 405)
    assert "prompt" not in str(answer.error)
    assert value(metrics, "requests_total", "other", str(status)) == 1


@pytest.mark.parametrize("error", [FULL, ValueError("my prompt")])
def test_an_answer_that_has_begun_is_not_begun_again(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    answer = ask(Answered(failing(error, begun=True), Metrics()), scope_of())
    assert (answer.status, answer.body) == (200, b"half")
    assert len(caplog.records) == 1
    assert "my prompt" not in caplog.text


def test_answers_are_counted_by_status() -> None:
    metrics = Metrics()
    for app in (failing(FULL), failing(ValueError()), failing(ValueError(), begun=True)):
        ask(Answered(app, metrics), scope_of())
    for status in ("429", "500", "200"):
        assert value(metrics, "requests_total", "/v1/completions", status) == 1
    assert value(metrics, "e2e_request_latency_seconds_count", "/v1/completions") == 3


def test_a_client_that_leaves_without_an_answer_is_counted_too() -> None:
    metrics = Metrics()
    with pytest.raises(asyncio.CancelledError):
        ask(Answered(failing(asyncio.CancelledError()), metrics), scope_of())
    assert value(metrics, "requests_total", "/v1/completions", "499") == 1
