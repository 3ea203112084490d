"""Every field of a request: what is read of it, what is refused by its name, and that nothing else ever comes out."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from draftloop.config import Speculative
from draftloop.decoding.penalties import Penalties
from draftloop.prompts.prompt import Prompt
from draftloop.serving import ApiError, Asked, RequestLimits, parse_chat, parse_text
from draftloop.serving.request_bodies import ChatBody, TextBody

DEFAULTS = Speculative(temperature=0.7, top_p=0.9, top_k=40, min_p=0.05, chat_template_args={"enable_thinking": True})
LIMITS = RequestLimits(max_body_bytes=200_000, max_prompt_chars=20_000, max_tokens=1_000)
ASK = {"role": "user", "content": "How warm is it in Lima?"}
TOOL = {"type": "function", "function": {"name": "temperature", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "time"}}
CALL = {"id": "a1", "type": "function", "function": {"name": "temperature", "arguments": '{"city": "Lima"}'}}


def chat(**fields: Any) -> Asked:
    return parse_chat(json.dumps({"messages": [ASK]} | fields).encode(), DEFAULTS, LIMITS)


def text(**fields: Any) -> Asked:
    return parse_text(json.dumps({"prompt": "Once"} | fields).encode(), DEFAULTS, LIMITS)


def refused(parse: Any, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert caught.value.param is None or caught.value.message.startswith(f"{caught.value.param}: ")
    return caught.value


def test_a_request_that_says_nothing_else_gets_the_defaults() -> None:
    assert chat() == Asked(
        kind="chat",
        prompt=Prompt(ASK["content"], (ASK,)),
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        template_args={"enable_thinking": True},
    )
    assert text() == Asked(kind="text", prompt=Prompt("Once"), temperature=0.7, top_p=0.9, top_k=40, min_p=0.05)


@pytest.mark.parametrize("parse", [chat, text])
def test_null_counts_as_absent_in_every_field(parse: Any) -> None:
    needed = {"messages", "prompt"}
    fields = {name for body in (ChatBody, TextBody) for name in body.model_fields} - needed
    assert parse(**dict.fromkeys(fields)) == parse()


@pytest.mark.parametrize("parse", [chat, text])
@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"model": "m"}, "model", "m"),
        ({"temperature": 0}, "temperature", 0.0),
        ({"temperature": 1.5}, "temperature", 1.5),
        ({"top_p": 1}, "top_p", 1.0),
        ({"top_k": 0}, "top_k", 0),
        ({"min_p": 0.0}, "min_p", 0.0),
        ({"seed": 3}, "seed", 3),
        ({"seed": -1}, "seed", 2**63 - 1),
        ({"seed": 0}, "seed", 0),
        ({"max_tokens": 1_000}, "max_tokens", 1_000),
        ({"stop": "\n"}, "stop", ("\n",)),
        ({"stop": ["a", "b", "c", "d"]}, "stop", ("a", "b", "c", "d")),
        ({"stop": []}, "stop", ()),
        ({"stream": True}, "stream", True),
        ({"stream_options": {}}, "include_usage", False),
        ({"stream_options": {"include_usage": True, "include_obfuscation": False}}, "include_usage", True),
        ({"repetition_penalty": 1.1}, "penalties", Penalties(repetition=1.1)),
        ({"presence_penalty": -2, "frequency_penalty": 2}, "penalties", Penalties(presence=-2.0, frequency=2.0)),
        ({"metadata": {"source": "editor", "more": [1]}}, "source", "editor"),
        ({"store": False}, "store", False),
        ({"store": True}, "store", True),
        ({"num_draft_tokens": 0}, "num_draft_tokens", 0),
        ({"num_draft_tokens": 64}, "num_draft_tokens", 64),
        ({"acceptance_rule": "block"}, "rule", "block"),
        ({"acceptance_rule": "auto"}, "rule", None),
        ({"acceptance_rule": "greedy", "temperature": 0}, "rule", None),
    ],
)
def test_what_both_kinds_take(parse: Any, given: dict[str, Any], name: str, value: object) -> None:
    assert getattr(parse(**given), name) == value


@pytest.mark.parametrize("parse", [chat, text])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("model", [1, True, ["m"]]),
        ("temperature", ["1", True, -0.1, 11, [1], 10**300, 1e-40, 5e-324]),
        ("top_p", [1.1, -1, "x", False, 5e-324]),
        ("top_k", [-1, 1.0, 2**31, True]),
        ("min_p", [2, {}]),
        ("seed", [1.0, True, 2**63, "1"]),
        ("max_tokens", [0, -1, 1.5, True, "9", 1_001, 10**30]),
        ("stop", [1, "", ["a", ""], [1], ["a"] * 5, "x" * 257, {"a": 1}, True]),
        ("stream", [1, "true", 0]),
        ("stream_options", [True, [], "x"]),
        ("stream_options.include_usage", [{"include_usage": 1}]),
        ("repetition_penalty", [0, -1, 11, True, 1e-40]),
        ("presence_penalty", [2.1, "0"]),
        ("frequency_penalty", [-2.1, []]),
        ("user", [1, {}]),
        ("metadata", [[], "x", 1]),
        ("metadata.source", [{"source": source} for source in (1, "", " a", "a b", "a\n", "x" * 65, "-a", "é")]),
        ("store", [0, "false"]),
        ("num_draft_tokens", [-1, 65, True, 1.0]),
        ("acceptance_rule", ["best", 1, True, "greedy"]),
        ("n", [2, 0, True, 1.0, "1"]),
        ("logit_bias", [{"5": 1}, []]),
    ],
)
def test_a_wrong_type_or_range_is_refused_by_name(parse: Any, name: str, values: list[Any]) -> None:
    for value in values:
        error = refused(parse, **{name.partition(".")[0]: value})
        assert (error.status, error.param, error.type) == (400, name, "invalid_request_error"), value


@pytest.mark.parametrize("rule", ["rejection", "block", "match"])
def test_a_sampling_rule_does_not_fit_a_greedy_request(rule: str) -> None:
    assert chat(acceptance_rule=rule).rule == rule
    assert refused(chat, acceptance_rule=rule, temperature=0).param == "acceptance_rule"


@pytest.mark.parametrize(
    ("harmless", "refusals"),
    [
        ({"n": 1}, {"n": 3}),
        ({"response_format": {"type": "text"}}, {"response_format": {"type": "json_object"}}),
        ({"logit_bias": {}}, {"logit_bias": {"50256": -100}}),
        ({"functions": []}, {"functions": [{"name": "f"}]}),
        ({"function_call": "auto"}, {"function_call": {"name": "f"}}),
        ({"audio": None}, {"audio": {"voice": "alloy"}}),
        ({"modalities": ["text"]}, {"modalities": ["text", "audio"]}),
    ],
)
def test_what_would_change_a_chat_is_refused_and_what_would_not_is_ignored(
    harmless: dict[str, Any], refusals: dict[str, Any]
) -> None:
    assert chat(**harmless, whatever=1) == chat()
    (name,) = refusals
    assert refused(chat, **refusals).param == name


@pytest.mark.parametrize(
    ("harmless", "refusals"),
    [
        ({"best_of": 1}, {"best_of": 2}),
        ({"echo": False}, {"echo": True}),
        ({"suffix": ""}, {"suffix": "the end"}),
    ],
)
def test_what_would_change_a_completion_is_refused(harmless: dict[str, Any], refusals: dict[str, Any]) -> None:
    assert text(**harmless, whatever=1) == text()
    (name,) = refusals
    assert refused(text, **refusals).param == name


def test_max_completion_tokens_is_the_newer_name_and_counts() -> None:
    assert chat(max_completion_tokens=7).max_tokens == 7
    assert chat(max_completion_tokens=7, max_tokens=9).max_tokens == 7
    assert refused(chat, max_completion_tokens=2_000).param == "max_completion_tokens"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
        ({"logprobs": False, "top_logprobs": 0}, None),
    ],
)
def test_log_probabilities_of_a_chat(given: dict[str, Any], wanted: int | None) -> None:
    assert chat(**given).top_logprobs == wanted


@pytest.mark.parametrize(
    "given", [{"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 21}, {"logprobs": True, "top_logprobs": -1}]
)
def test_log_probabilities_that_a_chat_cannot_ask_for(given: dict[str, Any]) -> None:
    assert refused(chat, **given).param == "top_logprobs"


def test_log_probabilities_of_a_completion_are_a_number() -> None:
    assert (text(logprobs=0).top_logprobs, text(logprobs=5).top_logprobs, text().top_logprobs) == (0, 5, None)
    assert {refused(text, logprobs=value).param for value in (6, -1, True, False)} == {"logprobs"}
    assert refused(chat, logprobs=1).param == "logprobs"


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("Once", Prompt("Once")),
        (["Once"], Prompt("Once")),
        ([5, 6, 0], (5, 6, 0)),
        ([[5, 6]], (5, 6)),
    ],
)
def test_the_prompt_of_a_completion(prompt: Any, wanted: Any) -> None:
    assert text(prompt=prompt).prompt == wanted


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        [],
        [[]],
        {},
        5,
        True,
        ["a", "b"],
        [[1], [2]],
        [-1],
        [True],
        [1.0],
        [2**31],
        [1, "a"],
        "x" * 20_001,
        [1] * 20_001,
        "a\0b",
    ],
)
def test_prompts_of_a_completion_that_are_refused(prompt: Any) -> None:
    assert refused(text, prompt=prompt).param == "prompt"


def test_several_prompts_are_refused_by_their_number() -> None:
    assert "2 prompts" in refused(text, prompt=["a", "b"]).message


def test_what_is_required_is_named() -> None:
    for parse, name in ((parse_chat, "messages"), (parse_text, "prompt")):
        with pytest.raises(ApiError) as caught:
            parse(b"{}", DEFAULTS, LIMITS)
        assert (caught.value.param, caught.value.code) == (name, "missing_required_parameter")


def test_contents_are_text_null_or_parts_of_text() -> None:
    parts = [{"type": "text", "text": "How warm"}, {"type": "text", "text": " is it?"}]
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "a1", "content": [{"type": "text", "text": "19"}]}
    asked = chat(messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}])
    assert isinstance(asked.prompt, Prompt)
    assert asked.prompt.messages is not None
    assert [message["content"] for message in asked.prompt.messages] == ["Be brief.", "How warm is it?"]
    turns = chat(messages=[ASK, calling, result])
    assert isinstance(turns.prompt, Prompt)
    assert turns.prompt.messages == (ASK, {**calling, "content": ""}, {**result, "content": "19"})


def test_a_chat_may_end_with_the_assistants_own_turn() -> None:
    said = {"role": "assistant", "content": "It is"}
    asked = chat(messages=[ASK, said])
    assert asked.prompt == Prompt(f"{ASK['content']}\nIt is", (ASK, said))


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hello", "messages[1]"),
        ({"content": "x"}, "messages[1].role"),
        ({"role": "wizard", "content": "x"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": 5}, "messages[1].content"),
        ({"role": "user", "content": {"text": "x"}}, "messages[1].content"),
        ({"role": "user", "content": [5]}, "messages[1].content"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages[1].content"),
        ({"role": "tool", "content": "x", "tool_call_id": 5}, "messages[1].tool_call_id"),
        ({"role": "assistant", "tool_calls": {}}, "messages[1].tool_calls"),
        ({"role": "assistant", "tool_calls": [5]}, "messages[1].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"id": "a"}]}, "messages[1].tool_calls[0].function"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
    ],
)
def test_a_message_that_is_none_is_named_by_its_place(message: Any, param: str) -> None:
    assert refused(chat, messages=[ASK, message]).param == param


def test_a_message_of_an_error_says_what_was_found_and_what_was_expected() -> None:
    assert refused(chat, messages=[5]).message == "messages[0]: expected an object, found 5"
    assert refused(chat, temperature="hot").message == 'temperature: input should be a valid number, found "hot"'
    assert refused(chat, stop={"a": 1}).message.endswith("none of them empty, found an object of 1")
    assert refused(chat, n=2).message == "n: only 1 is supported here; leave it out, found 2"


def test_an_image_is_refused_by_name() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    error = refused(chat, messages=[{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}])
    assert (error.status, error.param) == (400, "messages[0].content")
    assert "image_url" in error.message


def test_tools_go_to_the_prompt_as_they_were_given() -> None:
    tool = {"type": "function", "function": {**TOOL["function"], "strict": True}, "extra": 1}
    asked = chat(tools=[tool, OTHER])
    assert isinstance(asked.prompt, Prompt)
    assert asked.prompt.tools == (tool, OTHER)
    assert asked.tool_choice == "auto"
    assert chat(tools=[]) == chat()


@pytest.mark.parametrize(
    ("choice", "name", "tools"),
    [
        ("auto", "auto", (TOOL, OTHER)),
        ("required", "required", (TOOL, OTHER)),
        ("none", "none", None),
        ({"type": "function", "function": {"name": "time"}}, "time", (OTHER,)),
    ],
)
def test_the_choice_says_which_tools_the_model_sees(choice: Any, name: str, tools: Any) -> None:
    asked = chat(tools=[TOOL, OTHER], tool_choice=choice)
    assert isinstance(asked.prompt, Prompt)
    assert (asked.tool_choice, asked.prompt.tools) == (name, tools)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        (
            {"tools": [TOOL, {"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[1].function.parameters",
        ),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes", "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}, "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
    ],
)
def test_tools_and_choices_that_are_refused(given: dict[str, Any], param: str) -> None:
    assert refused(chat, **given).param == param


def test_template_arguments_are_added_to_the_configured_ones() -> None:
    assert chat(chat_template_kwargs={"x": [1]}).template_args == {"enable_thinking": True, "x": [1]}
    assert chat(chat_template_kwargs={"enable_thinking": False}).template_args == {"enable_thinking": False}


@pytest.mark.parametrize(
    "given",
    ["{}", [], {"messages": []}, {"tools": 1}, {"add_generation_prompt": False}, {"chat_template": "x"}, {"x": "\0"}],
)
def test_template_arguments_that_are_refused(given: Any) -> None:
    assert refused(chat, chat_template_kwargs=given).param == "chat_template_kwargs"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"messages": [{"role": "user", "content": "x" * 20_001}]}, "messages"),
        ({"messages": [ASK] * 1_000}, "messages"),
        ({"tools": [{**TOOL, "more": "x" * 20_001}]}, "tools"),
        ({"chat_template_kwargs": {"x": "x" * 20_001}}, "chat_template_kwargs"),
    ],
)
def test_a_chat_longer_than_the_limit_is_refused_before_anything_is_tokenized(
    given: dict[str, Any], param: str
) -> None:
    error = refused(chat, **given)
    assert (error.param, error.code) == (param, "context_length_exceeded")


def test_a_body_larger_than_the_limit_is_refused_unread() -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(b" " * 200_001, DEFAULTS, LIMITS)
    assert caught.value.status == 413


def test_a_list_of_millions_of_mistakes_costs_no_more_than_one() -> None:
    zeros = [0] * 60_000
    assert refused(chat, messages=zeros).message == "messages: found 60,000, expected at most 4,096"
    assert refused(chat, tools=zeros).message == "tools: found 60,000, expected at most 128"
    assert "at most 128 items" in refused(chat, messages=[{"role": "assistant", "tool_calls": zeros}]).message


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


BODIES = [
    b"",
    b"null",
    b"[]",
    b"NaN",
    b"{",
    b'{"messages": NaN}',
    b'{"temperature": Infinity, "messages": [{"role": "user", "content": "x"}]}',
    b'{"temperature": 1e999}',
    b'{"seed": ' + b"9" * 5_000 + b', "prompt": "x"}',
    b'{"prompt": "\\ud800"}',
    b'{"messages": [{"role": "user", "content": "\\udc00"}]}',
    b'{"prompt": "\xff"}',
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    nested(100_000),
    b'{"messages": ' + nested(1_000) + b"}",
    b'{"messages": [' + nested(1_000) + b"]}",
    b'{"messages": [{"role": "user", "content": ' + nested(1_000) + b"}]}",
    b'{"messages": [{"role": "user", "content": "x", "more": ' + nested(120) + b"}]}",
    b'{"messages": [{"role": "user", "content": "x", "more": ' + nested(300) + b"}]}",
    b'{"messages": [{"role": "user", "content": "x", "more": "\\u0000"}]}',
    b'{"messages": [{"role": ' + nested(900) + b', "content": "x"}]}',
    b'{"prompt": ' + nested(1_000) + b"}",
    b'{"prompt": "x", "stop": ' + nested(1_000) + b"}",
    b'{"prompt": "x", "metadata": ' + nested(1_000) + b"}",
    b'{"prompt": "x", "prompt": {}}',
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_body_that_is_no_request_is_a_400(body: bytes) -> None:
    for parse in (parse_chat, parse_text):
        with pytest.raises(ApiError) as caught:
            parse(body, DEFAULTS, LIMITS)
        assert caught.value.status == 400
        orjson.dumps(caught.value.to_json())


def test_an_unknown_field_may_be_as_deep_as_it_likes() -> None:
    body = b'{"prompt": "Once", "whatever": ' + nested(1_000) + b"}"
    assert parse_text(body, DEFAULTS, LIMITS) == text()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_an_api_error(body: bytes) -> None:
    check_total(body)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["auto", "user", "assistant", "tool", "function", "text", "greedy", "required", "temperature"])
)
members = st.sampled_from(
    ["role", "content", "type", "text", "name", "function", "arguments", "parameters", "source", "thinking"]
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(members | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "function", "x"])},
        optional=dict.fromkeys(["content", "tool_calls", "tool_call_id", "name", "function_call", "images"], values),
    )
    | values,
    max_size=4,
)
fields = st.sampled_from(sorted({*ChatBody.model_fields, *TextBody.model_fields, "whatever"}))


@settings(max_examples=600, deadline=None)
@given(
    given=st.dictionaries(fields, values, max_size=3),
    turns=st.just([ASK]) | messages,
    prompt=st.just("Once") | values,
)
@example(given={"tools": [TOOL], "tool_choice": []}, turns=[ASK], prompt=[0])
@example(given={"tool_choice": {"type": "function", "function": {"name": []}}}, turns=[ASK], prompt="x")
def test_no_json_value_raises_anything_but_an_api_error(given: dict[str, Any], turns: Any, prompt: Any) -> None:
    body = {"messages": turns, "prompt": prompt} | given
    check_total(json.dumps(body).encode())  # with NaN, lone surrogates and whole numbers of any size


@settings(max_examples=300, deadline=None)
@given(values)
def test_no_json_value_in_the_place_of_an_object_raises_anything_but_an_api_error(value: Any) -> None:
    check_total(json.dumps(value).encode())


def check_total(body: bytes) -> None:
    for parse in (parse_chat, parse_text):
        try:
            asked = parse(body, DEFAULTS, LIMITS)
        except ApiError as error:
            status, told = error.status, error.to_json()
        else:
            prompt = asked.prompt if isinstance(asked.prompt, Prompt) else Prompt("")
            status, told = 200, {"text": prompt.text, "messages": prompt.messages, "tools": prompt.tools}
        assert status in (200, 400)
        orjson.dumps(told)
