"""What models write in chats, in the formats that mlx-lm knows: content, reasoning and calls, in pieces as in whole."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import mlx_lm.tool_parsers
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlx_lm.chat_templates.muse_spark import RESPONSE_FORMAT
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from draftloop.serving.chat_output import ChatOutput
from draftloop.serving.responses import Piece

THINKING = ("<think>", "</think>")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "temperature",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    }
]


@cache
def wrapper(parser: str | None = None, added: Sequence[str] = (), response: bool = False) -> Any:
    """A tokenizer of bytes and of these tokens, whose model writes calls as this parser reads them."""
    alphabet = {char: place for place, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(alphabet, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_tokens(list(added))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False)
    if parser is None:
        return TokenizerWrapper(tokenizer, response_format=RESPONSE_FORMAT if response else None)
    module = importlib.import_module(f"mlx_lm.tool_parsers.{parser}")
    return TokenizerWrapper(
        tokenizer,
        tool_parser=module.parse_tool_call,
        tool_call_start=module.tool_call_start,
        tool_call_end=module.tool_call_end,
        response_format=RESPONSE_FORMAT if response else None,
    )


def answer(tokenizer: Any, *texts: str, prompt: str = "", tools: Any = TOOLS, ended: bool = True) -> Piece:
    output = ChatOutput(tokenizer, tokenizer.encode(prompt) if prompt else [], tools)
    piece = Piece.joined([*map(output.push, texts), output.finish(ended=ended)])
    assert output.calls == len(piece.tool_calls)
    assert [call.index for call in piece.tool_calls] == list(range(output.calls))
    return piece


def called(piece: Piece) -> list[tuple[str, Any]]:
    return [(call.name, orjson.loads(call.arguments)) for call in piece.tool_calls]


LIMA = ("temperature", {"city": "Lima", "days": 3})
WRITTEN = {  # what a model writes for a call of temperature(city="Lima", days=3), by the name of its parser
    "json_tools": '<tool_call>\n{"name": "temperature", "arguments": {"city": "Lima", "days": 3}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=temperature>\n<parameter=city>\nLima\n</parameter>\n<parameter=days>\n3\n"
    "</parameter>\n</function>\n</tool_call>",
    "mistral": '[TOOL_CALLS]temperature[ARGS]{"city": "Lima", "days": 3}',
    "pythonic": '<|tool_call_start|>[temperature(city="Lima", days=3)]<|tool_call_end|>',
    "gemma4": '<|tool_call>call:temperature{city:<|"|>Lima<|"|>,days:3}<tool_call|>',
    "function_gemma": "<start_function_call>call:temperature{city:<escape>Lima<escape>,days:3}<end_function_call>",
    "glm47": "<tool_call>temperature\n<arg_key>city</arg_key>\n<arg_value>Lima</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
    "laguna": "<tool_call>temperature\n<arg_key>city</arg_key>\n<arg_value>Lima</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
    "longcat": "<longcat_tool_call>temperature\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>Lima"
    "</longcat_arg_value>\n<longcat_arg_key>days</longcat_arg_key>\n<longcat_arg_value>3</longcat_arg_value>\n"
    "</longcat_tool_call>",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.temperature:0<|tool_call_argument_begin|>"
    '{"city": "Lima", "days": 3}<|tool_call_end|><|tool_calls_section_end|>',
    "kimi_k3": '<|open|>tools<|sep|><|open|>call tool="temperature" index="1"<|sep|><|open|>argument key="city" '
    'type="string"<|sep|>Lima<|close|>argument<|sep|><|open|>argument key="days" type="number"<|sep|>3<|close|>'
    "argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|>",
    "minicpm5": '<function name="temperature"><param name="city">Lima</param><param name="days">3</param></function>',
    "minimax_m2": '<minimax:tool_call>\n<invoke name="temperature">\n<parameter name="city">Lima</parameter>\n'
    '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>',
    "muse_spark": '<atem:function_calls>\n<atem:invoke name="temperature">\n<atem:parameter name="city">Lima'
    '</atem:parameter>\n<atem:parameter name="days">3</atem:parameter>\n</atem:invoke>\n</atem:function_calls>',
}


def test_every_parser_of_the_installed_mlx_lm_is_here() -> None:
    assert {module.name for module in pkgutil.iter_modules(mlx_lm.tool_parsers.__path__)} == set(WRITTEN)


@pytest.mark.parametrize("parser", WRITTEN)
def test_a_call_is_read_as_the_model_writes_it(parser: str) -> None:
    piece = answer(wrapper(parser), f"Let me see.\n\n{WRITTEN[parser]}")
    assert called(piece) == [LIMA]
    assert (piece.text, piece.reasoning) == ("Let me see.", "")


@pytest.mark.parametrize("parser", WRITTEN)
def test_a_call_comes_out_of_single_characters_as_out_of_the_whole(parser: str) -> None:
    assert called(answer(wrapper(parser), *f"Yes.{WRITTEN[parser]}")) == [LIMA]


@pytest.mark.parametrize("parser", WRITTEN)
def test_without_tools_the_marks_of_calls_are_content(parser: str) -> None:
    for tools in (None, []):
        piece = answer(wrapper(parser), WRITTEN[parser], tools=tools)
        assert piece == Piece(text=WRITTEN[parser])


@pytest.mark.parametrize("parser", WRITTEN)
def test_a_call_that_was_cut_short_is_content(parser: str) -> None:
    text = WRITTEN[parser][:-4]
    assert answer(wrapper(parser), text, ended=False) == Piece(text=text)


def test_a_model_may_end_its_output_in_the_place_of_the_closing_mark() -> None:
    text = WRITTEN["json_tools"].removesuffix("</tool_call>")
    assert called(answer(wrapper("json_tools"), text, ended=True)) == [LIMA]


@pytest.mark.parametrize(
    ("parser", "inside"),
    [
        ("json_tools", '{"name": "temperature", "arguments": {'),
        ("json_tools", "[1, 2]"),
        ("json_tools", '"temperature"'),
        ("json_tools", "{}"),
        ("json_tools", '{"name": "temperature", "arguments": [1]}'),
        ("json_tools", '{"name": 5, "arguments": {}}'),
        ("json_tools", '{"name": "", "arguments": {}}'),
        ("json_tools", '{"name": "temperature", "arguments": {"city": "\\ud800"}}'),
        ("json_tools", '{"name": "temperature", "arguments": "Lima"}'),
        ("json_tools", "[" * 100_000),
        ("json_tools", '{"name": "temperature", "arguments": ' + '{"a":' * 500 + "1" + "}" * 501),
        ("qwen3_coder", "<function=temperature>\n<parameter=days>\nmany\n</parameter>\n</function>"),
        ("qwen3_coder", "<function=temperature>\n<parameter=days>\ninf\n</parameter>\n</function>"),
        ("qwen3_coder", "temperature in Lima"),
        ("longcat", "temperature in Lima"),
        ("function_gemma", "call:temperature{city}"),
        ("pythonic", "temperature in Lima"),
        ("pythonic", "[temperature(city={1, 2})]"),
        ("kimi_k2", "temperature in Lima"),
        ("kimi_k2", "functions.temperature:0<|tool_call_argument_begin|>Lima"),
        ("minimax_m2", "temperature in Lima"),
    ],
)
def test_a_call_that_its_parser_cannot_read_is_content_as_it_was_written(parser: str, inside: str) -> None:
    tokenizer = wrapper(parser)
    text = f"One.\n{tokenizer.tool_call_start}\n{inside}\n{tokenizer.tool_call_end}\nTwo."
    assert answer(tokenizer, text) == Piece(text=text)


def test_content_and_calls_may_alternate() -> None:
    call = WRITTEN["json_tools"]
    piece = answer(wrapper("json_tools"), f"One.\n{call}\n{call}\n\nTwo.\n<tool_call>?</tool_call>{call}Three.\n")
    assert called(piece) == [LIMA] * 3
    assert piece.text == "One.Two.\n<tool_call>?</tool_call>Three.\n"


def test_calls_have_ids_of_their_own() -> None:
    call = WRITTEN["json_tools"]
    ids = [call.id for call in answer(wrapper("json_tools"), call * 20).tool_calls]
    assert len(set(ids)) == 20
    assert all(len(given) == 9 and given.isalnum() for given in ids)


def test_an_id_that_the_model_gave_is_kept() -> None:
    piece = answer(wrapper("kimi_k2"), WRITTEN["kimi_k2"])
    assert [call.id for call in piece.tool_calls] == ["functions.temperature:0"]


def test_a_call_without_arguments_has_none_and_json_in_json_is_read() -> None:
    for inside in ('{"name": "temperature"}', '{"name": "temperature", "arguments": "{}"}'):
        assert called(answer(wrapper("json_tools"), f"<tool_call>{inside}</tool_call>")) == [("temperature", {})]


def test_several_calls_of_one_text_are_in_its_order() -> None:
    text = '[TOOL_CALLS][{"name": "a", "arguments": {}}, {"name": "b", "arguments": {"x": "é"}}]'
    assert called(answer(wrapper("mistral"), text)) == [("a", {}), ("b", {"x": "é"})]


def test_reasoning_stands_apart_from_content() -> None:
    tokenizer = wrapper("json_tools", THINKING)
    text = "<think>\nLima is warm.\n\nSo: 19.\n</think>\n\nIt is 19.\n"
    assert answer(tokenizer, text) == Piece("It is 19.\n", "Lima is warm.\n\nSo: 19.")
    piece = answer(tokenizer, f"<think>I ask.</think>\n\n{WRITTEN['json_tools']}")
    assert (piece.text, piece.reasoning, called(piece)) == ("", "I ask.", [LIMA])


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("Hello.", Piece("So.</think>19.")),
        ("Hello.<think>\n", Piece("19.", "So.")),
        ("Hello.<think>\n\n</think>\n\n", Piece("So.</think>19.")),
        ("<think>a</think>Hello.<think>", Piece("19.", "So.")),
    ],
)
def test_a_prompt_may_begin_the_reasoning(prompt: str, wanted: Piece) -> None:
    assert answer(wrapper(None, THINKING), "So.</think>19.", prompt=prompt) == wanted


def test_reasoning_that_was_cut_short_is_reasoning() -> None:
    assert answer(wrapper(None, THINKING), "<think>\nLima</thi", ended=False) == Piece("", "Lima</thi")


def test_a_call_may_come_out_of_reasoning() -> None:
    piece = answer(wrapper("json_tools", THINKING), f"<think>I ask.\n{WRITTEN['json_tools']}\nDone.")
    assert (piece.text, piece.reasoning, called(piece)) == ("Done.", "I ask.", [LIMA])


def test_the_parts_of_a_format_with_headers_are_told_apart() -> None:
    tokenizer = wrapper("muse_spark", response=True)
    text = f"to=self<|message|>I ask.<|eom|>to=user<|message|>One moment.<|eom|>{WRITTEN['muse_spark']}"
    piece = answer(tokenizer, text)
    assert (piece.text, piece.reasoning, called(piece)) == ("One moment.", "I ask.", [LIMA])


def test_marks_that_only_frame_an_answer_are_left_out() -> None:
    tokenizer = wrapper("kimi_k3", ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"))
    text = "<|open|>think<|sep|>Hm.<|close|>think<|sep|><|open|>response<|sep|>19.<|close|>response<|sep|>"
    assert answer(tokenizer, text) == Piece("19.", "Hm.")


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40), st.integers(0, 40))
def test_a_text_without_a_mark_is_content_to_the_last_newline(text: str, cut: int) -> None:
    for tokenizer in (wrapper(), wrapper("json_tools", THINKING)):
        assert answer(tokenizer, text[:cut], text[cut:]) == Piece(text)


def test_content_goes_out_as_soon_as_it_cannot_begin_a_mark() -> None:
    output = ChatOutput(wrapper("json_tools", THINKING), [], TOOLS)
    assert [output.push(text).text for text in ("a <", "b", " <tool", "_cal", "X", "\n", "\nc")] == [
        "a ",
        "<b",
        " ",
        "",
        "<tool_calX",
        "",
        "\n\nc",
    ]


MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "f[ARGS]{}"]
fragments = st.sampled_from([*MARKS, "\n", " a", "{}", "<", "</", "th", "é", *WRITTEN.values()])


@settings(max_examples=400, deadline=None)
@given(
    parser=st.sampled_from(["json_tools", "mistral", "qwen3_coder"]),
    parts=st.lists(fragments, max_size=10),
    sizes=st.lists(st.integers(0, 9), max_size=20),
    ended=st.booleans(),
    prompt=st.sampled_from(["", "<think>"]),
)
@example(parser="json_tools", parts=["\n", "<tool_call>", "{}", "</tool_call>"], sizes=[1] * 30, ended=True, prompt="")
def test_pieces_are_the_whole(parser: str, parts: list[str], sizes: list[int], ended: bool, prompt: str) -> None:
    text = "".join(parts)
    ends = [0, *(sum(sizes[: n + 1]) for n in range(len(sizes))), len(text)]
    runs = [text[start:end] for start, end in pairwise(ends)] if sizes else [text]
    tokenizer = wrapper(parser, THINKING)
    pieces, whole = (answer(tokenizer, *given, prompt=prompt, ended=ended) for given in (runs, [text]))
    assert without_ids(pieces) == without_ids(whole)


def without_ids(piece: Piece) -> Piece:
    return replace(piece, tool_calls=tuple(replace(call, id="") for call in piece.tool_calls))
