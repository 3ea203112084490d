"""A real server on loopback, for as long as a test needs it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import uvicorn
from mortal import HANGS

from draftloop.config import Serve
from draftloop.serving.connections import uvicorn_settings
from draftloop.serving.guard import guarded
from draftloop.serving.metrics import Metrics

ServeApp = Callable[[Any, Serve], int]


@pytest.fixture(scope="module")
def served() -> Iterator[ServeApp]:
    """Serves an application by `Serve`'s limits, and says on which port."""
    with ExitStack() as servers:
        yield lambda app, serve: servers.enter_context(_server(app, serve))


@contextmanager
def _server(app: Any, serve: Serve) -> Iterator[int]:
    behind = guarded(app, serve, None, Metrics())
    settings = uvicorn_settings(behind, serve) | {"lifespan": "off"}
    server = uvicorn.Server(uvicorn.Config(**settings))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(HANGS)
        assert not thread.is_alive()
