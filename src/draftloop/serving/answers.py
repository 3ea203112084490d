"""Every request gets a whole answer, if need be OpenAI's error object. Knows nothing of what is asked.

`Answered` stands around the application, where nothing that a client sends may get past it: an exception becomes an
answer, and is logged without its message, because that may quote a prompt.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping
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
        status: int | None = None

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except ApiError as error:
            if status is None:
                await answer(error, sent)
            else:
                _log.error("refused after the answer had begun, which is cut off: %s", error.code or error.type)
        except Exception as error:  # noqa: BLE001 (whatever it is, the server goes on)
            _log.error("%s while answering %s:\n%s", type(error).__name__, scope["path"], _frames(error))
            if status is None:
                await answer(ApiError(500, "the server failed at this request"), sent)
        finally:
            self._metrics.answered(scope["path"], status or CLIENT_LEFT, time.perf_counter() - began)


def _frames(error: Exception) -> str:
    """Where an exception came from, without what it says."""
    return "".join(traceback.format_tb(error.__traceback__)).rstrip()
