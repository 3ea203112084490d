"""Who may use the application: Host and Origin, CORS and API key, before anything else of a request is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..config import Serve
from .api_error import ApiError
from .api_keys import Client, Keys
from .error_middleware import Answered, raw_headers
from .limits import Limits
from .paths import OneSpelling
from .security import PREFLIGHT_HEADERS, Door, cors_headers, is_preflight

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .metrics import Metrics

OPEN_PATHS = frozenset({"/health"})
"""What is served without a key: it says nothing, and what watches over the server should need no secret."""


def guarded(app: ASGIApp, serve: Serve, keys: Keys | None, metrics: Metrics) -> ASGIApp:
    """The application behind everything that a request has to pass: what a server serves."""
    return OneSpelling(Answered(Guard(Limits(app, serve), Door.of(serve), keys), metrics))


class Guard:
    """Lets in whom it may: `scope["state"]["client"]` then says who asks.

    Args:
        app: what is guarded.
        door: from where requests may come.
        keys: the API keys; None asks for none.
    """

    def __init__(self, app: ASGIApp, door: Door, keys: Keys | None) -> None:
        self._app = app
        self._door = door
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. The server's own start and stop go through, and nothing else does.

        Raises:
            ApiError: 403 for host or origin, 401 for the key, and those of `app`.
        """
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return None
        origin = self._door.admit(scope["headers"])
        if origin is None:
            return await self._serve(scope, receive, send)
        cors = cors_headers(origin)
        if is_preflight(scope["method"], scope["headers"]):
            return await _allow(send, {**cors, **PREFLIGHT_HEADERS})
        try:
            return await self._serve(scope, receive, _with_headers(send, cors))
        except ApiError as error:
            error.headers |= cors  # or the page could not read what is wrong
            raise

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = Client()
        if self._keys is not None and scope["path"] not in OPEN_PATHS:
            client = self._keys.client(scope["headers"])
        scope.setdefault("state", {})["client"] = client
        await self._app(scope, receive, send)


async def _allow(send: Send, headers: Mapping[str, str]) -> None:
    """Answer a preflight."""
    await send({"type": "http.response.start", "status": 204, "headers": raw_headers(headers)})
    await send({"type": "http.response.body", "body": b""})


def _with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    """A `send` that puts more headers on the answer."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *raw_headers(headers)]}
        await send(message)

    return sent
