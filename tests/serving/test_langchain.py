"""LangChain's package for OpenAI and a real server: chat, streams, tools, structured output, errors, many at once."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from scripted_pair import GREETING
from server import Server

pytestmark = pytest.mark.clients

QUESTION = ("user", "How warm is it in Lima?")
GREETED = "".join(GREETING)
ANSWERED = "It is 19 °C in Lima."
SCHEMA = {
    "title": "temperature",
    "description": "Degrees in a city.",
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Its name."}},
    "required": ["city"],
}


@pytest.fixture
def chat(scripted: Server) -> Any:
    package = pytest.importorskip("langchain_openai", reason="needs langchain-openai: make clients")
    return package.ChatOpenAI(base_url=scripted.url, api_key=scripted.key, model="default", max_retries=0)


def test_a_chat_is_answered_and_counted(chat: Any) -> None:
    found = chat.invoke([("system", "Be brief."), ("user", "hi")])
    assert (found.content, found.response_metadata["finish_reason"]) == (GREETED, "stop")
    assert found.usage_metadata["output_tokens"] == len(GREETING) + 1


def test_a_stream_adds_up_to_the_answer(chat: Any) -> None:
    pieces = list(chat.stream("hi", stream_usage=True))
    assert len(pieces) > 2
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert (whole.content, whole.usage_metadata["output_tokens"]) == (GREETED, len(GREETING) + 1)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called_and_its_result_is_answered(chat: Any, streamed: bool) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    with_tools = chat.bind_tools([SCHEMA], parallel_tool_calls=False)
    called: Any = with_tools.invoke([HumanMessage(QUESTION[1])])
    if streamed:
        pieces = list(with_tools.stream([HumanMessage(QUESTION[1])]))
        called = sum(pieces[1:], pieces[0])
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("temperature", {"city": "Lima"})
    result = ToolMessage("19", tool_call_id=call["id"])
    assert with_tools.invoke([HumanMessage(QUESTION[1]), called, result]).content == ANSWERED


def test_structured_output_comes_by_way_of_a_tool(chat: Any) -> None:
    found = chat.with_structured_output(SCHEMA, method="function_calling").invoke([QUESTION])
    assert found == {"city": "Lima"}


def test_structured_output_by_a_grammar_is_refused_by_name(chat: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat.with_structured_output(SCHEMA, method="json_schema").invoke([QUESTION])
    assert caught.value.param == "response_format"


def test_stop_strings_and_log_probabilities_reach_the_server(chat: Any) -> None:
    found = chat.bind(stop=[", friend"], logprobs=True, top_logprobs=2).invoke("hi")
    assert found.content == "Hello there"
    assert [entry["token"] for entry in found.response_metadata["logprobs"]["content"]] == GREETING[:2]


def test_a_mistake_is_the_exception_of_its_kind(chat: Any) -> None:
    for fields, kind in (({"n": 2}, openai.BadRequestError), ({"model": "gpt-4o"}, openai.NotFoundError)):
        with pytest.raises(kind) as caught:
            chat.bind(**fields).invoke("hi")
        assert caught.value.param == next(iter(fields))
    wrong = type(chat)(base_url=chat.openai_api_base, api_key="wrong-0123456789abcdef", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        wrong.invoke("hi")


def test_several_at_once_each_get_their_own_answer(chat: Any, scripted: Server) -> None:
    async def answers() -> list[Any]:
        async with openai.DefaultAsyncHttpxClient() as http:  # the package's own one is never closed
            given = {"base_url": scripted.url, "api_key": scripted.key, "model": "default", "max_retries": 0}
            return await type(chat)(**given, http_async_client=http).abatch(["hi"] * 6)

    assert [answer.content for answer in asyncio.run(answers())] == [GREETED] * 6
