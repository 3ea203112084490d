"""How much a request may send, and how long it may take to do so. The body is read here, whole, or refused. No MLX."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..config import Serve
from .api_error import ApiError
from .security import Headers, header_values

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100


class Limits:
    """Gives `app` requests with a body of bounded size, all of which is there.

    ApiErrors go through, to `error_middleware.Answered`.
    """

    def __init__(self, app: ASGIApp, serve: Serve) -> None:
        self._app = app
        self._most = serve.max_body_mb << 20
        self._seconds = serve.body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything else goes through.

        Raises:
            ApiError: 431 for the head, 413 and 408 for the body.
        """
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        check_head(scope)
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._body(scope["headers"], receive)
        except TimeoutError:
            raise ApiError(
                408,
                f"the body was not there after {self._seconds:g} s; send it faster, or raise serve.body_seconds",
                code="request_timeout",
                headers={"Connection": "close"},
            ) from None
        if body is not None:
            await self._app(scope, _replayed(body, receive), send)
        return None

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None where the client went away."""
        if declared_length(headers) > self._most:
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._most:
                raise self._too_large()
            more = message.get("more_body", False)
        return b"".join(chunks)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"a body of more than {self._most >> 20} MB; send a shorter request, or raise serve.max_body_mb",
            code="request_too_large",
        )


def check_head(scope: Scope) -> None:
    """Raise ApiError (431) for more or longer headers than any client of ours sends."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    size = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    size += sum(len(name) + len(value) for name, value in headers)
    if len(headers) > MAX_HEADERS or size > MAX_HEAD_BYTES:
        raise ApiError(
            431,
            f"{len(headers)} headers of {size} bytes with the path; expected at most {MAX_HEADERS} headers and "
            f"{MAX_HEAD_BYTES} bytes",
            code="request_headers_too_large",
        )


def declared_length(headers: Headers) -> int:
    """The largest Content-Length, 0 without one; what is no number counts as none, because bytes are counted anyway."""
    values = header_values(headers, b"content-length")
    return max((int(value) for value in values if value.isascii() and value.isdigit() and len(value) < 20), default=0)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that has the whole body in its first message, and then what the connection has."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return messages.pop() if messages else await receive()

    return received
