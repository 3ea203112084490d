"""Every request gets a whole answer, if need be OpenAI's error object. Knows nothing of what is asked.

`Answered` stands around the application, where nothing that a client sends may get past it: an exception becomes an
answer, and is logged without its message, because that may quote a prompt.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

import orjson

from .api_error import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .metrics import Metrics

CLIENT_LEFT = 499
"""nginx's status for a client that went away before it had an answer; counted, never sent."""
_log = logging.getLogger(__name__)


async def answer(error: ApiError, send: Send) -> None:
    """Send an error as the whole answer."""
    body = orjson.dumps(error.to_json())
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
    await send({"type": "http.response.start", "status": error.status, "headers": raw_headers(headers)})
    await send({"type": "http.response.body", "body": body})


def raw_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI has them."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


class Answered:
    """Turns every exception of `app` into an answer, and counts answers by status and time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything else goes through."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()
        reply = _Reply(send)
        try:
            await self._app(scope, receive, reply.send)
        except ApiError as error:
            if reply.status is None:
                await answer(error, reply.send)
            else:
                _log.error("refused after the answer had begun, which is cut off: %s", error.code or error.type)
        except Exception as error:  # noqa: BLE001 (whatever it is, the server goes on)
            _log.error("%s while answering %.100r:\n%s", type(error).__name__, scope["path"], frames(error))
            if reply.status is None:
                await answer(_failure(500, {}), reply.send)
        finally:
            self._metrics.answered(scope["path"], reply.status or CLIENT_LEFT, time.perf_counter() - began)


class _Reply:
    """What was sent of an answer. An error of a library's, which is in plain text, is sent as ours."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_replaced = False
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            status = self.status = message["status"]
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message.get("headers", [])}
            self._is_replaced = status >= 400 and not headers.get("content-type", "").startswith("application/json")
            if self._is_replaced:
                return await answer(_failure(status, headers), self._send)
        return None if self._is_replaced else await self._send(message)


def _failure(status: int, headers: Mapping[str, str]) -> ApiError:
    """An error of which only the status and the headers are known."""
    said = {404: "nothing is served at this path", 405: f"this path takes {headers.get('allow')} alone"}
    phrase = said.get(status) or ("the server failed" if status == 500 else HTTPStatus(status).phrase)
    return ApiError(status, phrase, headers={n: v for n, v in headers.items() if not n.startswith("content-")})


def frames(error: Exception) -> str:
    """Where an exception came from, without what it says."""
    return "".join(traceback.format_tb(error.__traceback__)).rstrip()
