"""One request put to an ASGI application without a server. Knows nothing of connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

HOST = (b"host", b"localhost:8080")


@dataclass
class Answer:
    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]


def scope_of(
    headers: Iterable[tuple[bytes, bytes]] = (HOST,), method: str = "POST", path: str = "/v1/completions"
) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
    }


def ask(app: Any, scope: dict[str, Any], chunks: Iterable[bytes | None] = (b"",), more_to_come: bool = False) -> Answer:
    """What `app` answers to a request whose body comes in chunks.

    The client leaves after the last chunk, with `more_to_come` in the middle; at None it stays and sends no more.
    """
    given = list(chunks)
    messages = [
        {"type": "http.request", "body": chunk, "more_body": more_to_come or index + 1 < len(given)}
        for index, chunk in enumerate(given)
    ]
    answer = Answer()

    async def receive() -> dict[str, Any]:
        if not messages:
            return {"type": "http.disconnect"}
        if messages[0]["body"] is None:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert answer.status == 0, "an answer begins once"
            answer.status, answer.headers = message["status"], dict(message["headers"])
        else:
            answer.body += message["body"]

    asyncio.run(app(scope, receive, send))
    return answer


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An application that sends back the body in one piece."""
    message = await receive()
    assert not message["more_body"]
    length = str(len(message["body"])).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": message["body"]})
