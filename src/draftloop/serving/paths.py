"""One spelling of each path: clients leave `/v1` out, say it twice, or put slashes where none belong. Knows no request.

They make an address of a base and a path, and do not agree whose part `/v1` is. A redirect would not do in place of
this: not every client repeats a POST, and behind a TLS proxy it would lead to another scheme.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_OURS = frozenset({"health", "metrics"})  # beside the API, not in it


def one_spelling(path: str) -> str:
    """The path as it is served: `/v1/chat/completions` for `//chat/completions/`, `/health` for `/v1/health`."""
    parts = [part for part in path.split("/") if part]
    while parts[:1] == ["v1"]:
        del parts[0]
    return "/".join(["", *([] if parts and parts[0] in _OURS else ["v1"]), *parts])


class OneSpelling:
    """Gives `app` requests whose paths are spelled as they are served."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything else goes through."""
        if scope["type"] == "http":
            scope = {**scope, "path": one_spelling(scope["path"])}
        await self._app(scope, receive, send)
