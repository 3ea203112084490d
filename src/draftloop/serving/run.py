"""Runs the server until a signal: loads the pair, listens, and stops in order. Knows no command line."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn

from ..config import Config
from ..data_directory import DataDirectory
from ..errors import ServeError
from ..evaluation.latency import machine_fingerprint
from ..evaluation.latency_profiles import StoredProfile
from ..models.pair import Pair, with_kept_choices
from ..retraining.log_bound import LogBound
from ..runtime.signals import AGAIN, handling
from . import admin
from .api_keys import keys_of
from .app import Serving, make_app
from .capture import Capture
from .connections import LAST_WORDS, uvicorn_settings
from .drafts import Drafts
from .engine import Capacity, Engine
from .idle_training import ChildCommand
from .job import Job
from .learning import set_up_learning
from .metrics import Metrics
from .served import Served, serve_pair
from .sources import Sources

Say = Callable[[str], None]
SWITCH = 5e-4  # seconds after which the HTTP thread gives the interpreter back to that of the models


def run_server(
    config: Config,
    data: DataDirectory,
    load: Callable[[], Pair],
    adapter: str,
    say: Say,
    child: ChildCommand | None = None,
) -> None:
    """Serve until a signal; on the main thread. The first signal lets requests finish, the second one ends at once.

    Args:
        config: of everything.
        data: where records go.
        load: loads the pair, with the bare draft.
        adapter: of the draft, as `--adapter` takes it; `champion` is also one that is promoted while it serves.
        say: told what happens, in lines for a person.
        child: what trains while nobody asks.

    Raises:
        ServeError: the address needs API keys, or they cannot be read, or the address cannot be listened on.
        DraftloopError: what `load` raises.
    """
    settings, metrics = config.serve, Metrics()
    keys = keys_of(settings)
    names = keys.names if keys is not None else frozenset()
    sources = Sources({settings.source, *names}, settings.max_sources)
    listening = _listen(settings.host, settings.port)
    where = f"http://{_in_url(settings.host)}:{listening.getsockname()[1]}/v1"
    name = served_name(config.models.target)

    def serve(pair: Pair) -> Served:
        return serve_pair(pair, config, data.costs, say)

    def loaded() -> Served:
        sources.know(data.log.sources())
        return drafts.first()

    renew = partial(with_kept_choices, models=config.models, names=data.names)
    drafts = Drafts(data.registry, adapter, load, renew, serve, metrics, say)

    most, bound = config.speculative.num_draft_tokens, LogBound(data, config, say)
    capture = Capture(data.log, data.blobs, metrics, settings.capture_rate, most, bound) if settings.capture else None
    wants: Callable[[Job], bool] = (lambda _job: False) if capture is None else capture.wants
    on_output: Callable[[Job], None] = (lambda _job: None) if capture is None else capture.offer

    def when_idle() -> bool:
        if not http.is_alive() and engine.is_serving:
            engine.stop(0)  # nobody can ask any more
        did_something = capture is not None and capture.work(lambda: not engine.is_idle)
        return did_something or (learning is not None and learning.questions.work())

    def ready() -> None:
        say(f"serving {name} on {where}")
        if learning is not None:
            learning.training.start()

    limits = Capacity(settings.max_concurrent, settings.queue, settings.prompt_cache_mb << 20)
    engine = Engine(
        loaded,
        limits,
        on_output,
        when_idle,
        metrics,
        wants,
        on_ready=ready,
        renew=drafts.renewed,
        on_request=lambda: None if learning is None else learning.training.touch(),
    )
    own = DataDirectory(data.root, config.data)  # its log is read on another thread than the writer's
    learning = None if child is None else set_up_learning(child, engine, drafts, own, config, metrics, say)
    put_into_use = partial(admin.put_into_use, own, config) if settings.admin else None
    app = make_app(Serving(config, engine, metrics, keys, sources, name, put_into_use))
    server = uvicorn.Server(uvicorn.Config(**uvicorn_settings(app, settings)))
    http = threading.Thread(target=server.run, args=([listening],), name="http", daemon=True)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        server.force_exit, server.should_exit = server.should_exit, True
        if engine.served is None:
            raise KeyboardInterrupt  # it loads or measures, and nobody has an answer to finish
        engine.stop(0 if server.force_exit else settings.grace_seconds)

    sys.setswitchinterval(SWITCH)
    try:
        with handling(stop, f"stopping: answers may finish; {AGAIN}"):
            http.start()
            engine.run()
    finally:
        if learning is not None:
            learning.close()
        server.should_exit = True
        http.join(LAST_WORDS)
        if capture is not None:
            capture.close()
    if engine.served is not None:
        _keep_experience(engine.served, data, say)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family)
    except OSError as error:
        raise ServeError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port") from None


def _in_url(host: str) -> str:
    return f"[{host.strip('[]')}]" if ":" in host else host


def served_name(target: str) -> str:
    """What requests call the target: its name on the hub, or the last part of its path."""
    path = Path(target)
    return path.name if path.exists() or path.is_absolute() else target


def _keep_experience(served: Served, data: DataDirectory, say: Say) -> None:
    """What requests have shown of acceptance is for the next start; so are latencies that had no directory before.

    Not so those that were measured of the bare draft, where its steps are others than those of the one in use by now.
    """
    for greedy, profile in served.profiles.items():
        key = machine_fingerprint(served.pair, greedy=greedy)
        kept = data.costs.of(key)
        if kept is None and key != served.measured.get(greedy):
            continue
        known = kept or StoredProfile(profile)
        rules = {rule: seen for rule, seen in served.learned().items() if (rule == "greedy") == greedy}
        if kept is None or rules:
            data.costs.keep_or_say(key, replace(known, experience=known.experience | rules), say)
