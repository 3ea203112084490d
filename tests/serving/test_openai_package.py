"""OpenAI's package for Python and a real server: chat, streams, tools, log-probabilities, errors, many at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from scripted_pair import ANSWER, CALL, GREETING, SONG, token_of
from server import Server, until

HELLO = [{"role": "user", "content": "hi"}]
SING = [{"role": "user", "content": "sing"}]  # without an end
LIMA = [{"role": "user", "content": "How warm is it in Lima?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "temperature",
        "description": "Degrees in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
GREETED = "".join(GREETING)
ANSWERED = "It is 19 °C in Lima."
FOREVER = 100_000  # tokens, which take minutes


@pytest.fixture
def client(scripted: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=scripted.url, api_key=scripted.key, max_retries=0) as client:
        yield client
    scripted.rest()


def chat(client: openai.OpenAI, messages: list[Any] = HELLO, **fields: Any) -> Any:
    return client.chat.completions.create(model="default", messages=messages, **fields)


def test_a_chat_is_answered_and_counted(client: openai.OpenAI) -> None:
    found = chat(client)
    assert found.choices[0].message.content == GREETED
    assert (found.model, found.choices[0].finish_reason) == ("target", "stop")
    assert found.usage.completion_tokens == len(GREETING) + 1
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.usage.completion_tokens_details.accepted_prediction_tokens > 0


@pytest.mark.parametrize(
    "fields",
    [
        {"parallel_tool_calls": True, "tools": [], "tool_choice": "auto"},
        {"response_format": {"type": "text"}, "modalities": ["text"], "n": 1, "seed": 1, "user": "somebody"},
        {"stop": None, "logit_bias": None, "top_logprobs": None, "stream_options": None, "tools": None},
        {"logit_bias": {}, "stop": [], "metadata": {"chat": "7"}, "store": False},
        {"max_completion_tokens": 50, "reasoning_effort": "low", "verbosity": "low", "service_tier": "auto"},
        {"extra_headers": {"OpenAI-Organization": "org", "OpenAI-Project": "p", "Accept-Encoding": "br, zstd"}},
        {"extra_body": {"repeat_penalty": 1.1, "cache_prompt": True, "keep_alive": "5m", "think": False}},
        {"extra_query": {"api-version": "2024-10-21"}},
    ],
)
def test_what_clients_send_beside_the_messages_changes_nothing(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    assert chat(client, **fields).choices[0].message.content == GREETED


def test_messages_may_be_of_developers_and_have_parts(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts, "name": "ann"}]
    assert chat(client, messages).choices[0].message.content == GREETED


def test_a_stream_is_the_whole_answer_in_pieces_and_its_counts_come_last(client: openai.OpenAI) -> None:
    *chunks, last = chat(client, stream=True, stream_options={"include_usage": True})
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == GREETED
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert (last.choices, last.usage.completion_tokens) == ([], len(GREETING) + 1)
    assert all(chunk.usage is None for chunk in chat(client, stream=True))


def test_a_character_of_two_tokens_comes_whole(client: openai.OpenAI) -> None:
    asked = [*LIMA, {"role": "assistant", "content": ""}, {"role": "tool", "tool_call_id": "a", "content": "19"}]
    pieces = [chunk.choices[0].delta.content or "" for chunk in chat(client, asked, stream=True)]
    assert "".join(pieces) == ANSWERED
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_tool_is_called_and_its_result_is_answered(client: openai.OpenAI) -> None:
    choice = chat(client, LIMA, tools=[TOOL], tool_choice="auto", parallel_tool_calls=False).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "temperature")
    assert json.loads(call.function.arguments) == {"city": "Lima"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "19"}
    for message in (choice.message, choice.message.model_dump(), choice.message.model_dump(exclude_none=True)):
        answer = chat(client, [*LIMA, message, result], tools=[TOOL]).choices[0]
        assert (answer.finish_reason, answer.message.content) == ("stop", ANSWERED)


def test_a_call_in_a_stream_is_put_together_by_the_package(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="default", messages=LIMA, tools=[TOOL]) as stream:
        kinds = {event.type for event in stream}
        choice = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.done" in kinds
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Lima"}


def test_without_a_tool_to_call_the_same_question_is_greeted(client: openai.OpenAI) -> None:
    assert chat(client, LIMA, tools=[TOOL], tool_choice="none").choices[0].message.content == GREETED


@pytest.mark.parametrize("stop", [", friend", ["never", ", fri"]])
def test_a_stop_string_is_left_out_whole_and_streamed(client: openai.OpenAI, stop: Any) -> None:
    whole = chat(client, stop=stop).choices[0]
    assert (whole.message.content, whole.finish_reason) == ("Hello there", "stop")
    chunks = list(chat(client, stop=stop, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello there"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_log_probabilities_have_every_token_and_the_most_probable_at_its_place(client: openai.OpenAI) -> None:
    whole = chat(client, logprobs=True, top_logprobs=3, max_tokens=len(GREETING)).choices[0]
    assert [entry.token for entry in whole.logprobs.content] == GREETING
    for entry in whole.logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token
        assert entry.logprob == pytest.approx(0, abs=1e-3)
        assert bytes(entry.bytes).decode() == entry.token
        assert entry.top_logprobs[1].logprob < -10
    chunks = chat(client, logprobs=True, max_tokens=len(GREETING), stream=True)
    streamed = [entry for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert [(entry.token, entry.top_logprobs) for entry in streamed] == [(token, []) for token in GREETING]


def test_a_completion_of_token_ids_is_one_of_text_and_streams(scripted: Server, client: openai.OpenAI) -> None:
    song = token_of(target_of(scripted), "[song]")
    for prompt in ([song], [[song]]):
        found = client.completions.create(model="default", prompt=prompt, max_tokens=6, logprobs=1)
        assert found.choices[0].text == "".join([*SONG, *SONG[1:3]])
        assert found.choices[0].finish_reason == "length"
        assert found.choices[0].logprobs.tokens == [*SONG, *SONG[1:3]]
    chunks = client.completions.create(model="default", prompt="Once", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == GREETED


def target_of(server: Server) -> Path:
    return Path(server.arguments[server.arguments.index("--model") + 1])


@pytest.mark.parametrize("name", ["default", "target"])
def test_a_model_is_described(client: openai.OpenAI, name: str) -> None:
    assert client.models.retrieve(name).id == "target"
    assert [model.id for model in client.models.list()] == ["target"]


@pytest.mark.parametrize("base", ["", "/", "/v1/", "//v1", "/v1/v1"])
def test_the_address_may_be_given_with_the_version_or_without(scripted: Server, base: str) -> None:
    url = scripted.url.removesuffix("/v1") + base
    with openai.OpenAI(base_url=url, api_key=scripted.key, max_retries=0) as client:
        assert chat(client).choices[0].message.content == GREETED
        assert client.models.retrieve("default").id == "target"


def test_what_asks_without_a_body_is_answered(scripted: Server) -> None:
    headers = {"Authorization": f"Bearer {scripted.key}"}
    head = httpx.head(f"{scripted.url}/models", headers=headers)
    assert (head.status_code, head.content) == (200, b"")
    options = httpx.options(f"{scripted.url}/chat/completions", headers=headers)
    assert (options.status_code, options.headers["allow"]) == (405, "POST")
    assert options.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format"),
        ({"logit_bias": {"5": 1}}, openai.BadRequestError, "logit_bias"),
        ({"temperature": 11}, openai.BadRequestError, "temperature"),
        ({"model": "gpt-4o"}, openai.NotFoundError, "model"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_mistake_is_the_exception_of_its_kind(
    client: openai.OpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError], param: str, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "default", "messages": HELLO, "stream": stream} | fields)
    assert (caught.value.param, caught.value.type) == (param, caught.value.body["type"])
    assert param in caught.value.message


def test_a_path_and_a_model_that_are_not_there_are_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="default", input="x")
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4o")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_a_wrong_key_is_a_401(scripted: Server) -> None:
    with (
        openai.OpenAI(base_url=scripted.url, api_key="wrong-0123456789abcdef", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        chat(client)
    assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")


def test_what_is_one_too_many_is_a_429_and_says_when_to_come_again(scripted: Server, client: openai.OpenAI) -> None:
    with ExitStack() as singing:
        for _ in range(6):  # two are decoded, four wait
            singing.enter_context(chat(client, SING, stream=True, max_tokens=FOREVER))
        with pytest.raises(openai.RateLimitError) as caught:
            chat(client)
    assert (caught.value.status_code, caught.value.code) == (429, "queue_full")
    assert int(caught.value.response.headers["retry-after"]) > 0
    scripted.rest()
    assert chat(client).choices[0].message.content == GREETED


def cancelled(server: Server) -> float:
    return server.metric('request_success_total{finished_reason="cancelled"}')


def test_a_stream_that_is_closed_in_the_middle_ends_its_decoding(scripted: Server, client: openai.OpenAI) -> None:
    before = cancelled(scripted)
    with chat(client, SING, stream=True, max_tokens=FOREVER) as stream:
        pieces = (chunk.choices[0].delta.content for chunk in stream)
        assert next(piece for piece in pieces if piece) == SONG[0]
    until(lambda: cancelled(scripted) == before + 1)


def test_several_at_once_each_get_their_own_answer(scripted: Server) -> None:
    async def ask(client: openai.AsyncOpenAI, number: int) -> str | None:
        fields: dict[str, Any] = {"model": "default", "messages": [HELLO, SING][number % 2], "max_tokens": 20}
        if number < 3:
            return (await client.chat.completions.create(**fields)).choices[0].message.content
        stream = await client.chat.completions.create(**fields, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=scripted.url, api_key=scripted.key, max_retries=0) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(6)))

    song = "".join([SONG[0], *SONG[1:] * 7][:20])
    assert asyncio.run(ask_all()) == [GREETED, song] * 3
    scripted.rest()


@pytest.mark.parametrize("stream", [False, True])
def test_a_task_that_is_cancelled_ends_its_decoding_and_no_other_one(scripted: Server, stream: bool) -> None:
    before = cancelled(scripted)

    async def sing(client: openai.AsyncOpenAI) -> None:
        fields: dict[str, Any] = {"model": "default", "messages": SING, "max_tokens": FOREVER, "stream": stream}
        song = await client.chat.completions.create(**fields)
        async for _ in song:
            pass

    async def leave() -> str | None:
        async with openai.AsyncOpenAI(base_url=scripted.url, api_key=scripted.key, max_retries=0) as client:
            singing = asyncio.create_task(sing(client))
            await asyncio.to_thread(until, lambda: scripted.metric("num_requests_running") == 1)
            greeting = await client.chat.completions.create(model="default", messages=HELLO)  # type: ignore[arg-type]
            singing.cancel()
            with suppress(asyncio.CancelledError):
                await singing
            return greeting.choices[0].message.content

    assert asyncio.run(leave()) == GREETED
    until(lambda: cancelled(scripted) == before + 1)
    scripted.rest()


def test_the_script_is_what_the_tests_say() -> None:
    assert json.loads("".join(map(str, CALL[1:-1])))["arguments"] == {"city": "Lima"}
    said = b"".join(piece if isinstance(piece, bytes) else piece.encode() for piece in ANSWER)
    assert said.decode() == ANSWERED
