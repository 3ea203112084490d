"""Clients make addresses in many ways; one path is served for all of them."""

from __future__ import annotations

from typing import Any

import pytest
from asgi import HOST, ask, scope_of
from hypothesis import given, settings
from hypothesis import strategies as st

from draftloop.config import Serve
from draftloop.serving.guard import guarded
from draftloop.serving.metrics import Metrics
from draftloop.serving.paths import one_spelling


@pytest.mark.parametrize(
    ("path", "served"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1//chat/completions", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/models/", "/v1/models"),
        ("/v1/models/org/model", "/v1/models/org/model"),
        ("/health/", "/health"),
        ("/v1/health", "/health"),
        ("/metrics", "/metrics"),
        ("/v1/health/chat", "/health/chat"),
        ("/v2/models", "/v1/v2/models"),
        ("/", "/v1"),
        ("", "/v1"),
    ],
)
def test_a_path_has_one_spelling(path: str, served: str) -> None:
    assert one_spelling(path) == served


@settings(deadline=None)
@given(
    parts=st.lists(st.sampled_from(["v1", "health", "models", "", "/", "//", ".."]) | st.text(max_size=5), max_size=6)
)
def test_the_one_spelling_is_its_own(parts: list[str]) -> None:
    spelled = one_spelling("/".join(parts))
    assert one_spelling(spelled) == spelled


def test_the_application_and_all_that_guards_it_see_the_one_spelling() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    metrics = Metrics()
    assert ask(guarded(app, Serve(), None, metrics), scope_of([HOST], path="//completions/")).body == b"/v1/completions"
    assert b'requests_total{path="/v1/completions",status="200"} 1.0' in metrics.render()
