"""Malformed requests, from a seeded generator: each is refused in OpenAI's way, none is a failure, and none hangs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.client import HTTPException

import pytest
from clients import COMPLETIONS, Reply, ask, connect, is_idle, metric, reply_on, until
from fault_table import Row
from malformed import Generator, Malformed
from server import Server

from draftloop.serving.request_bodies import ChatBody, TextBody

from .conftest import CONTEXT

pytestmark = pytest.mark.row("malformed requests")

GOOD = {"prompt": "the target and the draft", "max_tokens": 24, "temperature": 0}
CLIENTS = 4
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 501: "server_error"}


def answer_to(server: Server, wrong: Malformed) -> Reply | None:
    """What the server says; None where it ends the connection without a word."""
    with connect(server) as connection:
        with suppress(ConnectionResetError, BrokenPipeError):  # it may refuse before it has all
            connection.sendall(wrong.sent)
        try:
            return reply_on(connection, wrong.method)
        except (OSError, HTTPException) as error:
            if isinstance(error, TimeoutError) or wrong.is_http:
                raise AssertionError(f"{wrong.what}: no answer, {error!r}") from error
            return None


def check(wrong: Malformed, reply: Reply) -> None:
    """That it is an answer which a client of OpenAI's understands."""
    assert reply.status in wrong.allowed, (wrong.what, reply)
    if reply.status == 200 or wrong.method == "HEAD":
        return
    assert reply.kind == "application/json", (wrong.what, reply)
    assert reply.json.keys() == {"error"}, (wrong.what, reply)
    error = reply.json["error"]
    assert error.keys() == {"message", "type", "param", "code"}, (wrong.what, reply)
    assert isinstance(error["message"], str), (wrong.what, reply)
    assert error["message"], (wrong.what, reply)
    assert error["type"] == TYPES.get(reply.status, "invalid_request_error"), (wrong.what, reply)
    assert all(error[name] is None or (isinstance(error[name], str) and error[name]) for name in ("param", "code"))


def test_a_malformed_request_is_refused_and_harms_no_other(server: Server, row: Row) -> None:
    count = row.count(150, 1000)
    ask(server, COMPLETIONS, GOOD)  # from now on its prompt is in the cache
    before = ask(server, COMPLETIONS, GOOD).text
    said, failed = len(server.said), metric(server, 'records_dropped_total{reason="write_failed"}')
    wrong = list(Generator(seed=1, room=CONTEXT).requests(count))
    with ThreadPoolExecutor(CLIENTS) as clients:
        replies = list(clients.map(partial(answer_to, server), wrong))
    for one, reply in zip(wrong, replies, strict=True):
        if reply is not None:
            check(one, reply)
    until(lambda: is_idle(server), "rest")
    assert ask(server, COMPLETIONS, GOOD).text == before
    assert server.said[said:] == []
    assert metric(server, 'records_dropped_total{reason="write_failed"}') == failed
    refused = sum(reply is not None and reply.status != 200 for reply in replies)
    assert refused > count / 2
    row.did(count, "malformed requests")
    row.notes.append(
        f"{refused:,} of {count:,} malformed requests refused with a status, {replies.count(None):,} cut off"
    )


def test_every_field_of_a_request_is_among_them() -> None:
    whats = [wrong.what for wrong in Generator(seed=1, room=CONTEXT).requests(150)]
    for name in {*ChatBody.model_fields, *TextBody.model_fields}:
        assert any(f": {name} is " in what for what in whats), name
