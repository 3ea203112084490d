"""Connections that no client can hold for long, and what uvicorn is told. Knows nothing of requests' content.

uvicorn waits for ever for a head that comes byte by byte, and for a reader who does not read; it refuses in plain text.
`Connection` closes those three gaps. With no room for unsent bytes in the process, a sender waits for its reader, and
whatever is unsent runs against one clock.
"""

from __future__ import annotations

import asyncio
import math
import socket
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..config import Serve
from .api_error import ApiError
from .limits import MAX_HEAD_BYTES

if TYPE_CHECKING:
    from starlette.types import ASGIApp

SEND_BUFFER_BYTES = 256 * 1024
"""What the kernel may hold for a reader who is behind."""
LAST_WORDS = 5  # seconds for answers that are complete, or were cut, to go out
_SLACK = 5.0  # seconds after which a body that `limits.Limits` refused must have ended


class Connection(H11Protocol):
    """A connection whose client has only so much time, to send and to read."""

    serve: ClassVar[Serve] = Serve()
    _reading: asyncio.TimerHandle | None = None
    _phase: object = None  # h11's state of the client that the clock runs for
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, unless there are too many connections."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if len(self.connections) > self.serve.max_connections:
            self._refuse(ApiError(503, "too many connections; try again later", headers={"Retry-After": "5"}))
        else:
            self._watch_reading()

    def data_received(self, data: bytes) -> None:
        """Take what a client sends."""
        super().data_received(data)
        self._watch_reading()

    def pause_writing(self) -> None:
        """Some bytes could not be sent yet."""
        super().pause_writing()
        self._writing = self._writing or self.loop.call_later(self.serve.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """All of them are sent."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._watch(None)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; uvicorn calls this while it handles h11's exception, which knows the status."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self._refuse(ApiError(status, f"{msg} Expected HTTP/1.1 with at most {MAX_HEAD_BYTES} bytes of headers."))

    def _watch_reading(self) -> None:
        """Let the clock run for the head of a request, or for its body; a connection that waits for us has none."""
        state = self.conn.their_state
        self._watch(state if state in {h11.IDLE, h11.SEND_BODY} and not self.transport.is_closing() else None)

    def _watch(self, phase: object) -> None:
        if phase is self._phase:
            return
        self._phase = phase
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        if phase is not None:
            seconds = self.serve.head_seconds if phase is h11.IDLE else self.serve.body_seconds + _SLACK
            self._reading = self.loop.call_later(seconds, self.transport.abort)

    def _refuse(self, error: ApiError) -> None:
        """Answer before there is a request, or in place of its answer, and close."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # the application may be about to answer too
            self.cycle.message_event.set()
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return self.transport.abort()
        body = orjson.dumps(error.to_json())
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        response = h11.Response(status_code=error.status, headers=[*headers.items(), *error.headers.items()])
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        return self.transport.close()


def uvicorn_settings(app: ASGIApp, serve: Serve) -> dict[str, Any]:
    """The arguments of `uvicorn.Config` for a server of `app`.

    Prompts may stand in paths and exceptions, so uvicorn logs neither. It believes no header about who the client is.
    """
    bounded = type("BoundedConnection", (Connection,), {"serve": serve})
    return {
        "app": app,
        "host": serve.host,
        "port": serve.port,
        "http": bounded,
        "loop": "asyncio",
        "ws": "none",
        "lifespan": "on",
        "h11_max_incomplete_event_size": MAX_HEAD_BYTES,
        "timeout_keep_alive": serve.idle_seconds,
        "timeout_graceful_shutdown": math.ceil(serve.grace_seconds) + LAST_WORDS,
        "access_log": False,
        "log_config": None,
        "log_level": "error",
        "proxy_headers": False,
        "server_header": False,
    }
