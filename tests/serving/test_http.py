"""A real server and a real client on loopback: chat, streams, stop strings, log-probabilities, errors, records."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from mortal import HANGS
from server import Server, until

from draftloop.data.log import FailureLog
from draftloop.data.records import Record

PROMPT = "import os\n\ndef walk(top):\n"
ENDLESS = "def read_file(path):\n    "  # the target goes on for hundreds of tokens


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("served"), "--max-concurrent", "4", "--queue", "8") as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)


def text_of(client: openai.OpenAI, **wanted: object) -> str:
    fields = {"model": "default", "prompt": PROMPT, "max_tokens": 30, "temperature": 0} | wanted
    return client.completions.create(**fields).choices[0].text  # type: ignore[call-overload, no-any-return]


def test_the_model_is_listed_and_the_server_is_well(server: Server, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["embedded:target"]
    assert httpx.get(server.url.replace("/v1", "/health")).json() == {"status": "ok"}


def test_a_completion_whole_and_streamed_are_the_same(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="embedded:target", prompt=PROMPT, max_tokens=30, temperature=0)
    chunks = list(
        client.completions.create(
            model="default",
            prompt=PROMPT,
            max_tokens=30,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 30
    assert whole.timings["predicted_n"] == 30
    assert whole.timings["acceptance_length"] >= 1


def test_a_chat_streams_its_role_first_and_how_it_ended_last(client: openai.OpenAI) -> None:
    fields = {"model": "default", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12}
    whole = client.chat.completions.create(**fields, temperature=0)
    chunks = list(client.chat.completions.create(**fields, temperature=0, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_stop_string_is_left_out_of_text_and_log_probabilities(client: openai.OpenAI) -> None:
    whole = text_of(client)
    stop = whole[12:16]
    found = client.completions.create(
        model="default", prompt=PROMPT, max_tokens=30, temperature=0, stop=[stop], logprobs=2
    ).choices[0]
    assert found.text == whole[: whole.index(stop)]
    assert found.finish_reason == "stop"
    assert found.logprobs is not None
    assert "".join(found.logprobs.tokens or []).startswith(found.text)
    assert all(len(top) == 2 for top in found.logprobs.top_logprobs or [])


def test_a_second_turn_finds_the_first_in_the_cache(client: openai.OpenAI) -> None:
    prompt = "class Cache:\n    def get(self, key):\n        " * 2
    first = client.completions.create(model="default", prompt=prompt, max_tokens=20, temperature=0)
    second = client.completions.create(
        model="default", prompt=prompt + first.choices[0].text + "\n\n", max_tokens=20, temperature=0
    )
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens > 30


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model"),
        ({"temperature": "hot"}, openai.BadRequestError, "temperature"),
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"prompt": "word " * 5000}, openai.BadRequestError, "prompt"),
        ({"prompt": [99999999]}, openai.BadRequestError, "prompt"),
        ({"stop": ["1", "2", "3", "4", "5"]}, openai.BadRequestError, "stop"),
    ],
)
def test_a_mistake_is_refused_by_its_name(client: openai.OpenAI, fields: dict, kind: type, param: str) -> None:
    with pytest.raises(kind) as found:
        text_of(client, **fields)
    assert found.value.param == param
    assert text_of(client)


def test_an_unknown_path_is_no_crash(server: Server) -> None:
    found = httpx.get(f"{server.url}/embeddings")
    assert found.status_code == 404
    assert found.json()["error"]["type"] == "not_found_error"
    assert httpx.get(f"{server.url}/completions").status_code == 405
    assert httpx.get(f"{server.url}/embeddings/").status_code == 404  # and no redirect


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_ends_its_decoding(server: Server, stream: bool) -> None:
    before = server.metric('request_success_total{finished_reason="cancelled"}')
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps({"prompt": ENDLESS, "max_tokens": 400, "temperature": 0, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((host, int(port)), timeout=HANGS) as connection:
        connection.sendall(head + body)
        if stream:
            received = b""
            while b'"text"' not in received:  # before that it may still be waiting, and is no generation
                received += (more := connection.recv(4096))
                assert more
            assert received.startswith(b"HTTP/1.1 200")
        else:
            until(lambda: server.metric("num_requests_running") > 0)
    until(lambda: server.metric('request_success_total{finished_reason="cancelled"}') == before + 1)
    until(lambda: server.metric("num_requests_running") == 0)


def records(data: Path) -> list[Record]:
    return list(FailureLog(data / "failures" / "failures.jsonl").records())


def test_the_source_of_a_named_key_is_its_name_whatever_the_request_says(tmp_path: Path) -> None:
    """Or a client could have the share of as many sources as it invents names."""
    keys, named, nameless = tmp_path / "keys", "editor-0123456789abcdef", "nameless-0123456789abcdef"
    keys.touch(mode=0o600)
    keys.write_text(f"editor: {named}\n{nameless}\n")
    with Server(tmp_path / "data", "--num-draft-tokens", "3", "--api-key-file", str(keys), key=named) as server:
        for key in (named, nameless):
            client = openai.OpenAI(base_url=server.url, api_key=key, max_retries=0)
            text_of(client, extra_body={"metadata": {"source": "shell"}})
        until(lambda: server.metric("records_captured_total") == 2)
        assert server.stop() == 0
    assert [record.source for record in records(tmp_path / "data")] == ["editor", "shell"]


def test_every_answer_becomes_a_record_but_those_that_must_not(tmp_path: Path) -> None:
    with Server(tmp_path, "--source", "editor", "--num-draft-tokens", "3") as server:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
        text_of(client, temperature=0.8, seed=1)
        text_of(client, temperature=0.8, seed=2, extra_body={"metadata": {"source": "shell"}})
        text_of(client, prompt=PROMPT + "    # a secret", extra_body={"store": False})
        text_of(client, extra_body={"num_draft_tokens": 0})
        text_of(client, presence_penalty=1.0)
        until(lambda: server.metric("records_captured_total") == 3)
        assert server.metric('records_dropped_total{reason="not_stored"}') == 1
        assert server.metric('records_dropped_total{reason="penalties"}') == 1
        assert server.stop() == 0
    found = records(tmp_path)
    assert [record.source for record in found] == ["editor", "shell", "editor"]
    assert all(record.prompt == PROMPT and len(record.target_output) == 30 for record in found)
    assert all(record.teacher is not None for record in found)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"a secret" not in kept
    assert not any("walk" in line for line in server.said)


def test_a_server_that_is_asked_to_stop_reads_first_what_it_has_to_read_for_records(tmp_path: Path) -> None:
    """Also when nobody is connected any more."""
    texts = [f"def read_{number}(path):" for number in range(48)]
    with Server(tmp_path, "--num-draft-tokens", "3") as server:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
        with ThreadPoolExecutor(8) as pool:  # as long as they are asked, nothing is read
            list(pool.map(lambda text: text_of(client, prompt=text, extra_body={"num_draft_tokens": 0}), texts))
        client.close()
        assert server.stop() == 0
    assert sorted(record.prompt for record in records(tmp_path)) == sorted(texts)


def test_a_second_start_measures_nothing_again(tmp_path: Path) -> None:
    """At the first one the data directory may not be there yet."""
    measuring = []
    for _ in range(2):
        with Server(tmp_path / "new") as server:
            client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
            text_of(client)
            until(lambda: server.metric("records_captured_total") == 1)
            assert server.stop() == 0
        measuring.append(any("measuring" in line for line in server.said))
    assert measuring == [True, False]
