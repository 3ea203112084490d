"""The HTTP application: requests become jobs of the model thread, and its events become answers. Knows no model.

Everything that takes time happens elsewhere: tokens are made on a thread of their own, and decoded on the model's. A
client that goes away cancels its job.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import orjson
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..config import Config
from ..prompts.prompt import Prompt, Reading, Unusable, encode_prompt
from . import admin
from .answer import Answer
from .api_error import ApiError
from .api_keys import Client, Keys
from .asked import Asked
from .engine import Engine, Full
from .events import Ended, Event, NewText, Refused
from .guard import guarded
from .job import Job
from .metrics import CONTENT_TYPE, Metrics
from .requests import RequestLimits, parse_chat, parse_text
from .responses import AnswerHead, Piece, model_object, models_list
from .sources import Sources

Kind = Literal["chat", "text"]
_PARSE = {"chat": parse_chat, "text": parse_text}
_RETRY_AFTER = 5  # seconds


@dataclass
class Serving:
    """What the application works with.

    Attributes:
        config: of everything.
        engine: the model thread.
        metrics: of this server.
        keys: API keys; None asks for none.
        sources: that requests may name.
        name: by which the target is served.
        put_into_use: what a request's body asks to be the champion; None lets no request choose.
    """

    config: Config
    engine: Engine
    metrics: Metrics
    keys: Keys | None
    sources: Sources
    name: str
    put_into_use: Callable[[bytes], dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        self.created = int(time.time())
        self.limits = RequestLimits(max_body_bytes=self.config.serve.max_body_mb << 20)
        self._tokenizing = ThreadPoolExecutor(1, "tokenizer")
        self._choosing = ThreadPoolExecutor(1, "admin")  # it may wait for a lock, and no other request with it
        self._width: int | None = None
        self._prompts = 0  # that wait for their tokens

    def check_model(self, name: str | None) -> None:
        """Raise ApiError (404) where a request names a model that is not served."""
        if name not in (None, "default", self.name):
            message = f"the model {name!r} does not exist; this server has {self.name}, also called default"
            raise ApiError(404, message, param="model", code="model_not_found")

    def job(self, asked: Asked, tokens: tuple[int, ...], client: Client, send: Callable[[Event], None]) -> Job:
        """A job for a request."""
        # A key's name comes first: what is bounded by source would bound nobody who may choose any name.
        source = self.sources.fold(client.name or asked.source or self.config.serve.source)
        return Job(asked, tokens, str(client.number), source, send)

    async def choose(self, body: bytes) -> dict[str, Any]:
        """What `put_into_use` says. Raises ApiError."""
        assert self.put_into_use is not None
        return await asyncio.get_running_loop().run_in_executor(self._choosing, self.put_into_use, body)

    async def tokens(self, asked: Asked) -> tuple[int, ...]:
        """The prompt's tokens. Raises ApiError; 429 where as many prompts wait to be tokenized as requests may wait."""
        if self._prompts >= self.config.serve.queue + self.config.serve.max_concurrent:
            raise self.too_many
        self._prompts += 1  # on the loop's thread alone
        try:
            return await asyncio.get_running_loop().run_in_executor(self._tokenizing, self._encoded, asked)
        finally:
            self._prompts -= 1

    @property
    def too_many(self) -> ApiError:
        """The answer to a request that may not wait."""
        message = f"{self.config.serve.queue} requests are waiting already; try again later"
        return ApiError(429, message, code="queue_full", headers={"Retry-After": str(_RETRY_AFTER)})

    def _encoded(self, asked: Asked) -> tuple[int, ...]:
        served = self.engine.served
        assert served is not None
        pair, prompt = served.pair, asked.prompt
        param = "messages" if asked.kind == "chat" else "prompt"
        longest = served.longest_prompt(asked)
        tokens: list[int]
        if isinstance(prompt, Prompt):
            reading = Reading(False, self.config.speculative.template_seconds, asked.template_args)
            found = encode_prompt(
                prompt,
                pair.tokenizer,
                chat_template=asked.kind == "chat",
                max_length=longest,
                reading=reading,
                bound="what the models hold, with an answer",
            )
            if isinstance(found, Unusable):
                code = "context_length_exceeded" if found.reason == "too long" else None
                raise ApiError(400, f"{found.reason}: {found.detail}", param=param, code=code)
            tokens = found
        else:
            tokens = list(prompt)
        if len(tokens) > longest:
            found_and_expected = f"{len(tokens):,} tokens of prompt; expected at most {longest:,}"
            raise ApiError(400, found_and_expected, param=param, code="context_length_exceeded")
        if self._width is None:
            self._width = min(pair.width, 1 + max(pair.tokenizer.get_vocab().values()))  # rows beyond are padding
        width = self._width
        beyond = next((token for token in tokens if not 0 <= token < width), None)
        if beyond is not None or not tokens:
            raise ApiError(400, f"found token {beyond}; expected tokens from 0 to {width - 1:,}", param=param)
        return tuple(tokens)


def make_app(serving: Serving) -> Any:
    """The application, behind all that guards it."""

    def route(path: str, handler: Callable[[Serving, Request], Awaitable[Response]], method: str) -> Route:
        async def endpoint(request: Request) -> Response:
            return await handler(serving, request)

        return Route(path, endpoint, methods=[method])

    routes = [
        route("/v1/chat/completions", partial(_complete, "chat"), "POST"),
        route("/v1/completions", partial(_complete, "text"), "POST"),
        route("/v1/models", _models, "GET"),
        route("/v1/models/{model:path}", _model, "GET"),
        route("/health", _health, "GET"),
        route("/metrics", _metrics, "GET"),
    ]
    if serving.put_into_use is not None:
        routes.append(route(admin.PATH, _put_into_use, "POST"))

    async def refuse(_request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(error.to_json(), error.status, error.headers)

    app = Starlette(routes=routes, exception_handlers={ApiError: refuse})
    app.router.redirect_slashes = False  # to where http:// leads, which is the wrong place behind a TLS proxy
    return guarded(app, serving.config.serve, serving.keys, serving.metrics)


async def _health(serving: Serving, _request: Request) -> Response:
    engine = serving.engine
    if not engine.is_serving:
        return JSONResponse({"status": "loading" if engine.served is None else "stopping"}, 503)
    return JSONResponse({"status": "ok"})


async def _models(serving: Serving, _request: Request) -> Response:
    return JSONResponse(models_list([serving.name], serving.created))


async def _model(serving: Serving, request: Request) -> Response:
    serving.check_model(request.path_params["model"])
    return JSONResponse(model_object(serving.name, serving.created))


async def _metrics(serving: Serving, _request: Request) -> Response:
    serving.metrics.requests(*serving.engine.counts)
    serving.metrics.cache_bytes(serving.engine.prefixes.nbytes)
    return Response(serving.metrics.render(), media_type=CONTENT_TYPE)


async def _put_into_use(serving: Serving, request: Request) -> Response:
    return JSONResponse(await serving.choose(await request.body()))


async def _complete(kind: Kind, serving: Serving, request: Request) -> Response:
    """An answer, whole or as a stream."""
    body = await request.body()
    asked = await asyncio.to_thread(_PARSE[kind], body, serving.config.speculative, serving.limits)
    serving.check_model(asked.model)
    if serving.engine.served is None:
        raise ApiError(503, "the models are being loaded; try again later", headers={"Retry-After": str(_RETRY_AFTER)})
    tokens = await serving.tokens(asked)
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def send(event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            loop.call_soon_threadsafe(events.put_nowait, event)

    answer = Answer(asked, tokens, _head(serving, kind), serving.engine.served.pair.tokenizer)
    job = serving.job(asked, tokens, request.state.client, send)
    try:
        serving.engine.submit(job)
    except Full:
        raise serving.too_many from None
    if not asked.stream:
        whole = orjson.dumps(await _whole(answer, job.cancelled, events, request))
        return Response(whole, media_type="application/json")
    serve = serving.config.serve
    return _Events(  # not of the job: it has caches, and a reader may be slower than the models by far
        job.cancelled,
        _stream(answer, job.cancelled, events),
        ping=serve.keep_alive_seconds,
        ping_message_factory=lambda: ServerSentEvent(comment="still here"),
        sep="\n",
        shutdown_grace_period=serve.grace_seconds + 1,
    )


class _Events(EventSourceResponse):
    """A stream whose job ends with it, however it ends, even before it begins."""

    def __init__(self, cancelled: threading.Event, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._cancelled = cancelled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As the stream does."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._cancelled.set()


def _head(serving: Serving, kind: Kind) -> AnswerHead:
    assert serving.engine.served is not None
    prefix = "chatcmpl" if kind == "chat" else "cmpl"
    fingerprint = f"fp_{serving.engine.served.pair.identity.target[:10]}"
    return AnswerHead(f"{prefix}-{secrets.token_hex(12)}", int(time.time()), serving.name, fingerprint)


async def _whole(
    answer: Answer, cancelled: threading.Event, events: asyncio.Queue[Event], request: Request
) -> dict[str, Any]:
    """The whole answer, unless the client goes away before."""
    gone, following = asyncio.ensure_future(_gone(request)), asyncio.ensure_future(events.get())
    pieces: list[Piece] = []
    try:
        while True:
            await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                raise ApiError(499, "the client has left")
            event = following.result()
            following = asyncio.ensure_future(events.get())
            if isinstance(event, Refused):
                raise event.error
            if isinstance(event, Ended):
                pieces.append(answer.rest(event))
                return answer.whole(Piece.joined(pieces), event)
            pieces.append(answer.piece(event))
    finally:
        cancelled.set()
        gone.cancel()
        following.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(
    answer: Answer, cancelled: threading.Event, events: asyncio.Queue[Event]
) -> AsyncIterator[ServerSentEvent]:
    """Chunks as they come."""
    try:
        for chunk in answer.first():
            yield _event(chunk)
        while True:
            event = await events.get()
            if isinstance(event, Refused):
                yield _event(event.error.to_json())
                return
            if isinstance(event, NewText):
                for chunk in answer.chunks(event):
                    yield _event(chunk)
            else:
                for chunk in answer.last(event):
                    yield _event(chunk)
                yield ServerSentEvent("[DONE]")
                return
    finally:
        cancelled.set()


def _event(chunk: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(orjson.dumps(chunk).decode())
