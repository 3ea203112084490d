"""The formats that people keep prompts in: each becomes what was asked, without its answer, and nothing is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftloop.data.record_lines import to_line
from draftloop.prompts.chat_messages import NoPrompt
from draftloop.prompts.formats import prompt_of
from draftloop.prompts.prompt import Prompt

ASKED = {"role": "user", "content": "How warm is it in Lima?"}
ANSWER = {"role": "assistant", "content": "Warm."}
TOLD = {"role": "system", "content": "Be brief."}
CALL = {"id": "a1", "type": "function", "function": {"name": "temperature", "arguments": '{"city": "Lima"}'}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "a1", "content": "19 degrees"}
FUNCTION = {"name": "temperature", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}


def chat(*messages: dict[str, Any], tools: tuple[dict[str, Any], ...] | None = None) -> Prompt:
    return Prompt("\n".join(one["content"] for one in messages), messages, tools)


READ: dict[str, tuple[Any, Prompt, str, int]] = {
    # what is kept; the prompt, the name of the format, answers left out
    "text": ({"prompt": "hi", "id": 3}, Prompt("hi"), "", 0),
    "messages": ({"messages": [ASKED]}, chat(ASKED), "", 0),
    "tools": (
        {"messages": [ASKED, CALLING, RESULT], "tools": [TOOL]},
        chat(ASKED, CALLING, RESULT, tools=(TOOL,)),
        "",
        0,
    ),
    "no content": (
        {"messages": [ASKED, {**CALLING, "content": None, "refusal": None}, RESULT]},
        chat(ASKED, CALLING, RESULT),
        "",
        0,
    ),
    "content left out": (
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [CALL]}, RESULT]},
        chat(ASKED, {"role": "assistant", "tool_calls": [CALL], "content": ""}, RESULT),
        "",
        0,
    ),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Name a "}, "river."]}]},
        chat({"role": "user", "content": "Name a river."}),
        "",
        0,
    ),
    "no parts": (
        {"messages": [{"role": "system", "content": []}, ASKED]},
        chat({"role": "system", "content": ""}, ASKED),
        "",
        0,
    ),
    "an answer at the end": ({"messages": [ASKED, ANSWER]}, chat(ASKED), "", 1),
    "two answers at the end": ({"messages": [ASKED, CALLING, ANSWER]}, chat(ASKED), "", 2),
    "names, reasoning": (
        {"messages": [{**ASKED, "name": "Ana"}, {**ANSWER, "reasoning_content": "hm"}, ASKED]},
        chat({**ASKED, "name": "Ana"}, {**ANSWER, "reasoning_content": "hm"}, ASKED),
        "",
        0,
    ),
    "functions of old": (
        {
            "messages": [
                ASKED,
                {"role": "assistant", "content": None, "function_call": CALL["function"]},
                {"role": "function", "name": "temperature", "content": "19"},
            ],
            "functions": [FUNCTION],
        },
        chat(
            ASKED,
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL["function"]}]},
            {"role": "tool", "name": "temperature", "content": "19"},
            tools=(TOOL,),
        ),
        "",
        0,
    ),
    "ShareGPT": (
        {"id": "x_0", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "Hello."}]},
        chat({"role": "user", "content": "hi"}),
        "ShareGPT",
        1,
    ),
    "ShareGPT with a system prompt": (
        {
            "conversations": [
                {"from": "user", "value": "a"},
                {"from": "chatgpt", "value": "b"},
                {"from": "human", "value": "c"},
            ],
            "system": "Be brief.",
            "tools": "[]",
        },
        chat(
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ),
        "ShareGPT",
        0,
    ),
    "ShareGPT with tools": (
        {
            "conversations": [
                {"from": "human", "value": "How warm is it in Lima?"},
                {"from": "function_call", "value": json.dumps(CALL["function"])},
                {"from": "observation", "value": "19"},
                {"from": "gpt", "value": "Warm."},
            ],
            "tools": json.dumps([FUNCTION]),
        },
        chat(
            ASKED,
            {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL["function"]}], "content": ""},
            {"role": "tool", "content": "19"},
            tools=(TOOL,),
        ),
        "ShareGPT",
        1,
    ),
    "ShareGPT in OpenAI's words": ({"conversations": [ASKED, ANSWER]}, chat(ASKED), "ShareGPT", 1),
    "alpaca": ({"instruction": "Sort.", "input": "b a", "output": "a b"}, Prompt("Sort.\n\nb a"), "alpaca", 1),
    "alpaca without input": ({"instruction": "Sort.", "input": "", "output": ""}, Prompt("Sort."), "alpaca", 0),
    "alpaca with history": (
        {"instruction": "And now?", "history": [["one", "two"]], "system": "Be brief.", "output": "x"},
        chat(
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "And now?"},
        ),
        "alpaca",
        1,
    ),
    "plain text": ({"text": "Once upon a time"}, Prompt("Once upon a time"), "text", 0),
    "completion": ({"prompt": "one, two,", "completion": " three"}, Prompt("one, two,"), "prompt and completion", 1),
    "conversational completion": ({"prompt": [ASKED], "completion": [ANSWER]}, chat(ASKED), "prompt and completion", 1),
    "a request": (
        {"model": "x", "messages": [ASKED], "tools": [TOOL], "stream": True},
        chat(ASKED, tools=(TOOL,)),
        "logged request",
        0,
    ),
    "a request and its response": (
        {"time": 1, "request": {"model": "x", "messages": [ASKED]}, "response": {"choices": [{"message": ANSWER}]}},
        chat(ASKED),
        "logged request",
        0,
    ),
    "a batch of OpenAI's": (
        {
            "custom_id": "1",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "x", "messages": [ASKED]},
        },
        chat(ASKED),
        "logged request",
        0,
    ),
    "a body as text": (
        {"request": {"path": "/v1/chat/completions", "body": json.dumps({"model": "x", "messages": [ASKED]})}},
        chat(ASKED),
        "logged request",
        0,
    ),
    "a request for a response": (
        {
            "model": "x",
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "How warm is it in Lima?"}]},
                {"type": "function_call", "call_id": "a1", "name": "temperature", "arguments": '{"city": "Lima"}'},
                {"type": "function_call_output", "call_id": "a1", "output": "19 degrees"},
            ],
            "tools": [{"type": "function", **FUNCTION}],
        },
        chat({"role": "system", "content": "Be brief."}, ASKED, CALLING, RESULT, tools=(TOOL,)),
        "logged request",
        0,
    ),
    "a system prompt beside the messages": (
        {"model": "x", "system": [{"type": "text", "text": "Be brief."}], "messages": [ASKED]},
        chat(TOLD, ASKED),
        "logged request",
        0,
    ),
    "a system prompt beside its own": (
        {"system_prompt": "Be brief.", "messages": [TOLD, ASKED]},
        chat(TOLD, ASKED),
        "",
        0,
    ),
    "a system prompt beside a text": (
        {"model": "x", "prompt": "hi", "system": "Be brief."},
        chat(TOLD, {"role": "user", "content": "hi"}),
        "logged request",
        0,
    ),
    "tools beside a text": (
        {"prompt": "hi", "tools": [TOOL]},
        chat({"role": "user", "content": "hi"}, tools=(TOOL,)),
        "",
        0,
    ),
    "tools among the settings of a log": (
        {"model": "x", "messages": [ASKED], "model_parameters": {"tools": [TOOL]}, "response": {"choices": []}},
        chat(ASKED, tools=(TOOL,)),
        "logged request",
        1,
    ),
    "messages as text": ({"messages": json.dumps([ASKED, ANSWER])}, chat(ASKED), "", 1),
    "what was refused": (
        {"messages": [ASKED, {"role": "assistant", "content": None, "refusal": "No."}, ASKED]},
        chat(ASKED, {"role": "assistant", "content": "No.", "refusal": "No."}, ASKED),
        "",
        0,
    ),
    "reasoning among parts": (
        {
            "messages": [
                ASKED,
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "hm"}, {"type": "refusal", "refusal": "No."}],
                },
                ASKED,
            ]
        },
        chat(ASKED, {"role": "assistant", "content": "No.", "reasoning_content": "hm"}, ASKED),
        "",
        0,
    ),
    "ShareGPT in other words": (
        {"conversations": [{"role": "Human", "value": "hi"}, {"from": "GPT", "value": "Hello."}]},
        chat({"role": "user", "content": "hi"}),
        "ShareGPT",
        1,
    ),
    "Dolly": (
        {"instruction": "When?", "context": "It was in 1999.", "response": "1999", "category": "closed_qa"},
        Prompt("When?\n\nIt was in 1999."),
        "alpaca",
        1,
    ),
    "a preference with its prompt in both answers": (
        {"chosen": [ASKED, ANSWER], "rejected": [ASKED, {**ANSWER, "content": "Cold."}]},
        chat(ASKED),
        "preference",
        1,
    ),
    "a request for one completion": ({"model": "x", "prompt": ["hi"]}, Prompt("hi"), "logged request", 0),
    "a message of a log beside its request": (
        {"text": "POST /v1/chat/completions", "request": {"content": json.dumps({"model": "x", "messages": [ASKED]})}},
        chat(ASKED),
        "logged request",
        0,
    ),
    "a request for a response with an answer in pieces": (
        {
            "model": "x",
            "input": [
                ASKED,
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "gAAA"},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
                {"type": "function_call", "call_id": "a1", **CALL["function"]},
                {"type": "function_call", "call_id": "a2", **CALL["function"]},
                {"type": "function_call_output", "call_id": "a1", "output": "19"},
            ],
        },
        chat(
            ASKED,
            {
                "role": "assistant",
                "content": "Let me see.",
                "reasoning_content": "hm",
                "tool_calls": [CALL, {**CALL, "id": "a2"}],
            },
            {"role": "tool", "tool_call_id": "a1", "content": "19"},
        ),
        "logged request",
        0,
    ),
    "a request for a response to a text": (
        {"model": "x", "input": "hi"},
        chat({"role": "user", "content": "hi"}),
        "logged request",
        0,
    ),
}


@pytest.mark.parametrize("name", READ)
def test_each_format_is_read(name: str) -> None:
    found, prompt, kind, answers = READ[name]
    converted = prompt_of(json.loads(json.dumps(found)))
    assert converted.prompt == prompt
    assert (converted.format, converted.answers) == (kind, answers)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}

REFUSED: dict[str, tuple[Any, str, str]] = {
    "a text": ("text", "bad line", "expected an object with one of prompt, messages, conversations, instruction, text"),
    "a list": ([1], "bad line", "expected an object"),
    "another object": ({"query": "a", "b": 1}, "bad line", "its keys are b, query"),
    "an empty one": ({}, "bad line", "its keys are none"),
    "a number for a prompt": ({"prompt": 5}, "bad line", "prompt is 5, expected a text"),
    "no messages": ({"messages": []}, "bad line", "messages is [], expected a list of messages"),
    "nothing": (None, "bad line", "found null"),
    "a message alone": ({"role": "user", "content": "hi"}, "bad line", 'into one object: {"messages": [...]}'),
    "a text for a message": (
        {"messages": ["hello"]},
        "bad line",
        'every message is an object with a "role", found hello',
    ),
    "a message without a role": ({"messages": [{"content": "a"}]}, "bad line", "every message"),
    "a role that is none": ({"messages": [{"role": 5, "content": "a"}]}, "bad line", "every message"),
    "a user without content": ({"messages": [{"role": "user"}]}, "bad line", "of the role 'user' has no \"content\""),
    "a number for a content": ({"messages": [{"role": "user", "content": 5}]}, "bad line", "neither text nor a list"),
    "an image": ({"messages": [{"role": "user", "content": [IMAGE]}]}, "not text", "a part that is no text: image_url"),
    "an image among text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "this?"}, IMAGE]}]},
        "not text",
        "image_url",
    ),
    "a number among parts": ({"messages": [{"role": "user", "content": [5]}]}, "not text", "int"),
    "an answer alone": ({"messages": [ANSWER]}, "empty", "its messages ask nothing"),
    "a system prompt and an answer": (
        {"messages": [{"role": "system", "content": "x"}, ANSWER]},
        "empty",
        "ask nothing",
    ),
    "tools that are none": ({"messages": [ASKED], "tools": "none of them"}, "bad line", "is not JSON"),
    "tools that are numbers": ({"messages": [ASKED], "tools": [1]}, "bad line", "tools: a list of objects"),
    "calls that are a text": ({"messages": [{**CALLING, "tool_calls": "x"}, RESULT]}, "bad line", "tool_calls: a list"),
    "somebody unknown": ({"conversations": [{"from": "alien", "value": "x"}]}, "bad line", "a turn is from 'alien'"),
    "a history that is none": ({"instruction": "a", "history": ["x"]}, "bad line", "history: pairs"),
    "token ids of which an embedding was asked for": ({"model": "x", "input": [[1, 2]]}, "bad line", "every message"),
    "an image for a response": ({"model": "x", "input": [{"type": "image"}]}, "not text", "image"),
    "an image beside a text": ({"model": "x", "prompt": "this?", "images": ["iVBO"]}, "not text", "it has images"),
    "an image beside a content": (
        {"messages": [{"role": "user", "content": "this?", "images": ["iVBO"]}]},
        "not text",
        "it has images",
    ),
    "an input that is a number": ({"instruction": "Double it.", "input": 5}, "bad line", "input: a text is expected"),
    "several completions": ({"prompt": ["a", "b"]}, "bad line", "a prompt of 2 texts or token ids"),
    "token ids": ({"model": "x", "prompt": [5]}, "bad line", "a prompt of 1 texts or token ids"),
    "an answer by itself": ({"text": "It is warm.", "role": "assistant"}, "empty", "what an assistant said"),
    "a developer alone": ({"messages": [{**TOLD, "role": "developer"}]}, "empty", "ask nothing"),
    "an embedding of a text": ({"model": "text-embedding-3-small", "input": "hi"}, "bad line", "its keys are"),
    "speech": ({"model": "x", "input": "hi", "voice": "alloy"}, "bad line", "its keys are"),
    "half a conversation": (
        {"model": "x", "input": "And then?", "previous_response_id": "resp_1"},
        "bad line",
        "it goes on from a response that is not in the log",
    ),
    "no number in JSON text": ({"messages": [ASKED], "tools": '[{"name": NaN}]'}, "bad line", "JSON has not (nan)"),
    "a number past 64 bits in JSON text": (
        {"request": json.dumps({"messages": [ASKED], "tools": [{"name": 2**64}]})},
        "bad line",
        "more than 64 bits",
    ),
    "a NUL in JSON text": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": '{"name": "\\u0000"}'}]},
        "bad line",
        "a NUL character",
    ),
    "a NUL": ({"prompt": "a\0b"}, "bad line", "a NUL character"),
    "a NUL in a key": ({"messages": [ASKED], "tools": [{"a\0": 1}]}, "bad line", "a NUL character"),
    "a number past 64 bits": ({"messages": [ASKED], "tools": [{"name": 2**64}]}, "bad line", "more than 64 bits"),
    "what is no number": ({"messages": [ASKED], "tools": [{"name": float("nan")}]}, "bad line", "JSON has not (nan)"),
    "a number beyond all": ({"messages": [ASKED], "x": float("-inf")}, "bad line", "JSON has not (-inf)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_prompt_is_refused_with_the_reason(name: str) -> None:
    found, reason, detail = REFUSED[name]
    with pytest.raises(NoPrompt) as caught:
        prompt_of(found)
    assert caught.value.why.reason == reason
    assert detail in caught.value.why.detail
    assert "\n" not in caught.value.why.detail


def test_what_is_nested_too_deeply_for_a_record_is_refused() -> None:
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    with pytest.raises(NoPrompt, match="nested more than 100 deep"):
        prompt_of({"messages": [ASKED], "tools": [{"name": deep}]})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    "messages",
    "conversations",
    "conversation",
    "prompt",
    "instruction",
    "input",
    "text",
    "tools",
    "history",
    "system",
    "chosen",
    "context",
    "model_parameters",
    "images",
]
TURNS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "system", "tool", "function"]) | JSON,
            "from": st.sampled_from(["human", "gpt", "function_call"]) | JSON,
            "value": JSON,
            "content": JSON,
            "tool_calls": JSON,
            "function_call": JSON,
            "type": st.sampled_from(["reasoning", "message", "function_call", "function_call_output"]) | JSON,
            "summary": JSON,
        },
    ),
    max_size=3,
)


@given(
    found=JSON
    | st.dictionaries(
        st.sampled_from([*KEYS, "model", "body", "request"]), JSON | TURNS | TURNS.map(json.dumps), max_size=4
    )
    | st.fixed_dictionaries({"model": st.just("x"), "input": TURNS})
)
@settings(max_examples=500, deadline=None)
def test_any_json_is_a_prompt_that_a_record_keeps_or_a_refusal(found: Any, record_with: Any) -> None:
    try:
        prompt = prompt_of(found).prompt
    except NoPrompt:
        return
    assert isinstance(prompt.text, str)
    if prompt.messages is not None:
        assert to_line(record_with(prompt))


@pytest.fixture(scope="module")
def record_with() -> Any:
    from builders import make_record

    from draftloop.store.json_values import without_surrogates

    def record(prompt: Prompt) -> Any:
        kept = without_surrogates({"messages": prompt.messages, "tools": prompt.tools})
        return make_record(
            prompt=prompt.text,
            messages=tuple(kept["messages"]),
            tools=None if kept["tools"] is None else tuple(kept["tools"]),
        )

    return record
