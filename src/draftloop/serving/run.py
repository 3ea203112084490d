"""Runs the server until a signal: loads the pair, listens, and stops in order. Knows no command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

import uvicorn

from ..config import Config
from ..data_directory import DataDirectory
from ..evaluation.latency import machine_fingerprint
from ..models.pair import Pair
from .api_keys import keys_of
from .app import Serving, make_app
from .capture import Capture
from .connections import uvicorn_settings
from .engine import Engine
from .engine import Limits as EngineLimits
from .job import Job
from .metrics import Metrics
from .served import Served, keep_profile, serve_pair
from .sources import Sources

Say = Callable[[str], None]


class _Server(uvicorn.Server):
    """A first signal lets requests finish, a second one ends at once."""

    def handle_exit(self, _signal: int, _frame: FrameType | None) -> None:
        """Unlike uvicorn, treat SIGTERM as SIGINT, and do not raise it once more at the end: stopping is no error."""
        self.force_exit, self.should_exit = self.should_exit, True


def serve(config: Config, data: DataDirectory, load: Callable[[], Pair], say: Say) -> None:
    """Serve until a signal.

    Args:
        config: of everything.
        data: where records go.
        load: loads the pair; called on the thread that decodes.
        say: told what happens, in lines for a person.

    Raises:
        ServeError: the address needs API keys, or they cannot be read.
        DraftloopError: what `load` raises.
        OSError: the address cannot be listened on.
    """
    settings, metrics = config.serve, Metrics()
    keys = keys_of(settings)
    names = keys.names if keys is not None else frozenset()
    sources = Sources({settings.source, *names}, settings.max_sources)
    capture = Capture(data.log, data.blobs, metrics, settings.capture_rate) if settings.capture else None
    server: _Server

    def loaded() -> Served:
        try:
            served = serve_pair(load(), config, data.costs, say)
        except BaseException:
            server.should_exit = True
            raise
        metrics.champion(served.pair.adapter or "base")
        say(f"serving {name} on http://{settings.host}:{_port(server) or settings.port}/v1")
        return served

    limits = EngineLimits(settings.max_concurrent, settings.queue, settings.prompt_cache_mb << 20)
    on_output: Callable[[Job], None] = (lambda _job: None) if capture is None else capture.offer
    when_idle: Callable[[], bool] = (lambda: False) if capture is None else capture.work
    engine = Engine(loaded, limits, on_output, when_idle, metrics)
    name = served_name(config.models.target)
    app = make_app(Serving(config, engine, metrics, keys, sources, name))
    server = _Server(uvicorn.Config(**uvicorn_settings(app, settings)))
    try:
        server.run()
    finally:
        say("stopping")
        engine.stop(0)
        if capture is not None:
            capture.close()
        if engine.served is not None:
            _keep_experience(engine.served, data, say)
    if engine.failure is not None:
        raise engine.failure
    if not server.started:
        raise OSError(f"cannot listen on {settings.host}:{settings.port}")


def served_name(target: str) -> str:
    """What requests call the target: its name on the hub, or the last part of its path."""
    path = Path(target)
    return path.name if path.exists() or path.is_absolute() else target


def _port(server: uvicorn.Server) -> int | None:
    """Where it listens, once it does."""
    sockets = [sock for one in getattr(server, "servers", ()) for sock in one.sockets]
    return int(sockets[0].getsockname()[1]) if sockets else None


def _keep_experience(served: Served, data: DataDirectory, say: Say) -> None:
    """What requests have shown of acceptance is for the next start."""
    for greedy in served.profiles:
        key = machine_fingerprint(served.pair, greedy=greedy)
        known = data.costs.of(key)
        rules = {rule: seen for rule, seen in served.experience.items() if (rule == "greedy") == greedy}
        if known is not None and rules:
            keep_profile(data.costs, key, replace(known, experience=known.experience | rules), say)
