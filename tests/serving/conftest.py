"""Real servers on loopback, for as long as tests need them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import uvicorn
from mortal import HANGS
from scripted_pair import write_scripted_pair
from server import Server

from draftloop.config import Serve
from draftloop.serving.connections import uvicorn_settings
from draftloop.serving.guard import guarded
from draftloop.serving.metrics import Metrics

ServeApp = Callable[[Any, Serve], int]
_KEY = "editor-0123456789abcdef"


@pytest.fixture(scope="module")
def served() -> Iterator[ServeApp]:
    """Serves an application by `Serve`'s limits, and says on which port."""
    with ExitStack() as servers:
        yield lambda app, serve: servers.enter_context(_server(app, serve))


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of a pair that follows a script; two requests at a time, four that wait, one API key."""
    root = tmp_path_factory.mktemp("scripted")
    target, draft = write_scripted_pair(root)
    keys = root / "keys"
    keys.touch(mode=0o600)
    keys.write_text(f"editor: {_KEY}\n")
    models = ("--model", str(target), "--draft-model", str(draft), "--num-draft-tokens", "3")
    many = ("--max-concurrent", "2", "--queue", "4", "--api-key-file", str(keys))
    with Server(root / "data", *models, *many, key=_KEY) as server:
        yield server


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
