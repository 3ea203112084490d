"""The application on a real engine, without a connection: what it keeps of requests, and what it refuses early."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from asgi import Answer, scope_of
from mortal import HANGS

from draftloop.config import Config, Models, Speculative
from draftloop.models.pair import Pair, load_pair
from draftloop.prompts.prompt import encode_prompt
from draftloop.serving import admin
from draftloop.serving.app import Serving, make_app
from draftloop.serving.engine import Capacity, Engine
from draftloop.serving.job import Job
from draftloop.serving.metrics import Metrics
from draftloop.serving.served import Served
from draftloop.serving.sources import Sources

K = 4


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair(Models())


def serve(
    pair: Pair,
    work: Callable[[Any, Engine], None],
    put_into_use: Callable[[bytes], dict[str, Any]] | None = None,
    config: Config | None = None,
) -> None:
    """Run an engine here, as long as a thread works with its application."""
    metrics, ready, failed = Metrics(), threading.Event(), list[BaseException]()
    served = Served(pair, Speculative(num_draft_tokens=K), {}, "rejection")
    limits = Capacity(4, 4, 0)
    engine = Engine(lambda: served, limits, lambda _job: None, lambda: False, metrics, on_ready=ready.set)
    app = make_app(Serving(config or Config(), engine, metrics, None, Sources((), 10), "the target", put_into_use))

    def works() -> None:
        try:
            assert ready.wait(HANGS)
            work(app, engine)
        except BaseException as error:  # noqa: BLE001 - it is raised again, on the test's own thread
            failed.append(error)
        finally:
            engine.stop(0)

    thread = threading.Thread(target=works)
    thread.start()
    engine.run()
    thread.join()
    if failed:
        raise failed[0]


def ask(app: Any, fields: dict[str, Any], path: str = "/v1/completions") -> Answer:
    """What it answers to a client that stays."""
    return asyncio.run(answer_of(app, fields, path))


async def answer_of(
    app: Any, fields: dict[str, Any], path: str = "/v1/completions", reads: asyncio.Event | None = None
) -> Answer:
    """The same; the client takes nothing before `reads` is set."""
    messages = [{"type": "http.request", "body": json.dumps(fields).encode(), "more_body": False}]
    answer = Answer()

    async def receive() -> dict[str, Any]:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    async def send(message: Any) -> None:
        if reads is not None:
            await reads.wait()
        answer.status = message.get("status", answer.status)
        answer.body += message.get("body", b"")

    await app(scope_of(path=path), receive, send)
    return answer


def test_a_slow_reader_holds_no_caches_of_a_decoded_answer(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[weakref.ref[Job]] = []

    def is_gone() -> bool:
        gc.collect()
        return bool(jobs) and jobs[0]() is None

    async def read_late(app: Any) -> Answer:
        reads, deadline = asyncio.Event(), time.monotonic() + HANGS
        fields = {"prompt": "def read_file(path):", "max_tokens": 30, "temperature": 0, "stream": True}
        answering = asyncio.ensure_future(answer_of(app, fields, reads=reads))
        while not is_gone():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        reads.set()
        return await answering

    def work(app: Any, engine: Engine) -> None:
        submit = engine.submit

        def noted(job: Job) -> None:
            jobs.append(weakref.ref(job))
            submit(job)

        monkeypatch.setattr(engine, "submit", noted)
        assert asyncio.run(read_late(app)).body.endswith(b"data: [DONE]\r\n\r\n")

    serve(pair, work)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_leaves_no_room_for_a_round_is_refused_before_an_answer_begins(pair: Pair, stream: bool) -> None:
    assert pair.context is not None
    most = pair.context - K - 2
    answers: list[Answer] = []

    def work(app: Any, _engine: Engine) -> None:
        for length in (most, most + 1):
            fields = {"prompt": [5] * length, "max_tokens": 8, "stream": stream}
            answers.append(ask(app, fields))

    serve(pair, work)
    fits, beyond = answers
    assert fits.status == 200
    assert beyond.status == 400
    assert beyond.error["code"] == "context_length_exceeded"


def test_a_prompt_that_is_too_long_is_not_measured_by_a_setting_of_collecting(pair: Pair) -> None:
    answers: list[Answer] = []

    def work(app: Any, _engine: Engine) -> None:
        answers.append(ask(app, {"prompt": "word " * 4000}))

    serve(pair, work)
    assert answers[0].error["code"] == "context_length_exceeded"
    assert "the models hold" in answers[0].error["message"]


def test_requests_that_wait_for_the_registry_keep_no_other_one_waiting(pair: Pair) -> None:
    goes_on, most, seen = threading.Event(), 0, list[int]()

    def put_into_use(_body: bytes) -> dict[str, Any]:
        nonlocal most
        seen.append(1)
        most = max(most, len(seen))
        assert goes_on.wait(HANGS)
        seen.pop()
        return {"champion": None}

    def work(app: Any, _engine: Engine) -> None:
        chosen: list[Answer] = []
        asking = [threading.Thread(target=lambda: chosen.append(ask(app, {}, admin.PATH))) for _ in range(2)]
        for thread in asking:
            thread.start()
        assert ask(app, {"prompt": "def", "max_tokens": 3}).status == 200
        goes_on.set()
        for thread in asking:
            thread.join()
        assert [answer.status for answer in chosen] == [200, 200]

    serve(pair, work, put_into_use)
    assert most == 1  # they share a data directory, which is of one thread at a time


def test_no_more_prompts_wait_to_be_tokenized_than_requests_may_wait(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, goes_on = Config.model_validate({"serve": {"max_concurrent": 1, "queue": 1}}), threading.Event()

    def slow(*given: Any, **named: Any) -> Any:
        assert goes_on.wait(HANGS)
        return encode_prompt(*given, **named)

    monkeypatch.setattr("draftloop.serving.app.encode_prompt", slow)

    async def ask_three(app: Any) -> None:
        fields = {"prompt": "Once upon a time", "max_tokens": 1}
        asked = [asyncio.ensure_future(answer_of(app, fields)) for _ in range(3)]
        answered, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert [(await one).status for one in answered] == [429]
        goes_on.set()
        assert [(await one).status for one in waiting] == [200, 200]

    serve(pair, lambda app, _engine: asyncio.run(ask_three(app)), config=config)
