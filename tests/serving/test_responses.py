"""What clients read: OpenAI's objects, member by member, whole and in chunks, always JSON."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest

from draftloop.serving.responses import (
    AnswerHead,
    Finished,
    NamedLogprob,
    Piece,
    Timings,
    ToolCall,
    Usage,
    chat_chunk,
    chat_completion,
    models_list,
    text_chunk,
    text_completion,
    usage_chunk,
)

HEAD = AnswerHead("chatcmpl-1", 1_700_000_000, "m", "fp_1")
COMMON = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": "m", "system_fingerprint": "fp_1"}
USAGE = Usage(prompt=20, completion=12, cached=8, accepted=7, rejected=3)
USAGE_JSON = {
    "prompt_tokens": 20,
    "completion_tokens": 12,
    "total_tokens": 32,
    "prompt_tokens_details": {"cached_tokens": 8},
    "completion_tokens_details": {"accepted_prediction_tokens": 7, "rejected_prediction_tokens": 3},
}
TIMINGS = Timings(
    prompt_n=12, prompt_ms=30.0, predicted_n=12, predicted_ms=60.0, cache_n=8, draft_n=10, draft_n_accepted=7, rounds=5
)
TIMINGS_JSON = {
    "prompt_n": 12,
    "prompt_ms": 30.0,
    "predicted_n": 12,
    "predicted_ms": 60.0,
    "predicted_per_second": 200.0,
    "cache_n": 8,
    "draft_n": 10,
    "draft_n_accepted": 7,
    "acceptance_length": 2.4,
}
END = Finished("stop", USAGE, TIMINGS)
CALL = ToolCall(0, "abc123def", "temperature", '{"city":"Lima"}')
CALL_JSON = {
    "id": "abc123def",
    "type": "function",
    "function": {"name": "temperature", "arguments": '{"city":"Lima"}'},
}
TOKENS = (
    NamedLogprob("Hé", -0.5, (("Hé", -0.5), ("Ho", -1.5)), 0),
    NamedLogprob("\ufffd", -math.inf, (("\ufffd", -0.25), ("\ufffd", -3.0)), 2),
)


def as_json(value: dict[str, Any]) -> Any:
    return orjson.loads(orjson.dumps(value))


def test_a_whole_answer_in_a_chat() -> None:
    assert as_json(chat_completion(HEAD, Piece("Hello."), END)) == {
        **COMMON,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE_JSON,
        "timings": TIMINGS_JSON,
    }


def test_calls_and_reasoning_of_a_whole_answer() -> None:
    end = Finished("tool_calls", USAGE, TIMINGS)
    (choice,) = chat_completion(HEAD, Piece("", "I ask.", (CALL,)), end)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "I ask.",
        "reasoning": "I ask.",
        "tool_calls": [CALL_JSON],
    }
    assert chat_completion(HEAD, Piece(), END)["choices"][0]["message"]["content"] == ""


def test_the_chunks_of_a_chat() -> None:
    chunks = [
        chat_chunk(HEAD),
        chat_chunk(HEAD, Piece("Hel", "Hm.")),
        chat_chunk(HEAD, Piece(tool_calls=(CALL,))),
        chat_chunk(HEAD, end=END),
    ]
    assert all({name: chunk[name] for name in COMMON} == COMMON for chunk in chunks)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    choices = [chunk["choices"] for chunk in chunks]
    assert [[choice["delta"] for choice in one] for one in choices] == [
        [{"role": "assistant", "content": ""}],
        [{"content": "Hel", "reasoning_content": "Hm.", "reasoning": "Hm."}],
        [{"tool_calls": [{"index": 0, **CALL_JSON}]}],
        [{}],
    ]
    assert [one[0]["finish_reason"] for one in choices] == [None, None, None, "stop"]
    assert ["timings" in chunk for chunk in chunks] == [False, False, False, True]
    assert not any("usage" in chunk for chunk in chunks)


@pytest.mark.parametrize(("kind", "name"), [("chat", "chat.completion.chunk"), ("text", "text_completion")])
def test_the_chunk_of_counts_has_no_choice(kind: Any, name: str) -> None:
    assert usage_chunk(HEAD, kind, USAGE) == {**COMMON, "object": name, "choices": [], "usage": USAGE_JSON}


def test_a_completion_and_its_chunks_have_one_kind() -> None:
    whole = text_completion(HEAD, Piece("upon a time"), END)
    choice = {"index": 0, "text": "upon a time", "logprobs": None, "finish_reason": "stop"}
    counts = {"usage": USAGE_JSON, "timings": TIMINGS_JSON}
    assert whole == {**COMMON, "object": "text_completion", "choices": [choice], **counts}
    chunk = text_chunk(HEAD, Piece("upon"))
    assert chunk["object"] == "text_completion"
    assert chunk["choices"] == [{"index": 0, "text": "upon", "logprobs": None, "finish_reason": None}]
    assert text_chunk(HEAD, end=END)["choices"][0]["finish_reason"] == "stop"


def test_log_probabilities_of_a_chat() -> None:
    (choice,) = as_json(chat_completion(HEAD, Piece("Hé?", tokens=TOKENS), END))["choices"]
    first, second = choice["logprobs"]["content"]
    known = {"token": "Hé", "logprob": -0.5, "bytes": [72, 195, 169]}
    assert first == {**known, "top_logprobs": [known, {"token": "Ho", "logprob": -1.5, "bytes": [72, 111]}]}
    assert (second["bytes"], second["logprob"]) == (None, -9999.0)  # a part of a character, and JSON has no infinity
    assert chat_chunk(HEAD, Piece("Hé?", tokens=TOKENS))["choices"][0]["logprobs"] == choice["logprobs"]


def test_log_probabilities_of_a_completion() -> None:
    (choice,) = as_json(text_completion(HEAD, Piece("Hé?", tokens=TOKENS), END))["choices"]
    assert choice["logprobs"] == {
        "tokens": ["Hé", "\ufffd"],
        "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": [{"Hé": -0.5, "Ho": -1.5}, {"\ufffd": -0.25}],
        "text_offset": [0, 2],
    }
    alone = text_chunk(HEAD, Piece("a", tokens=(NamedLogprob("a", -1.0),)))["choices"][0]["logprobs"]
    assert alone["top_logprobs"] is None


def test_what_was_cancelled_is_cut_as_at_a_length() -> None:
    for finish in ("length", "cancelled"):
        assert Finished(finish, USAGE, TIMINGS).reason == "length"


def test_timings_of_nothing_are_null_and_no_error() -> None:
    timings = Timings(prompt_n=0, prompt_ms=0.0, predicted_n=0, predicted_ms=0.0).to_json()
    assert (timings["predicted_per_second"], timings["acceptance_length"]) == (None, None)


def test_pieces_are_joined_in_their_order() -> None:
    pieces = [Piece("a", "x", (CALL,), TOKENS[:1]), Piece(), Piece("b", "y", (), TOKENS[1:])]
    assert Piece.joined(pieces) == Piece("ab", "xy", (CALL,), TOKENS)
    assert Piece.joined([]) == Piece()


def test_the_list_of_models() -> None:
    assert models_list(["m", "default"], 5) == {
        "object": "list",
        "data": [
            {"id": "m", "object": "model", "created": 5, "owned_by": "draftloop"},
            {"id": "default", "object": "model", "created": 5, "owned_by": "draftloop"},
        ],
    }
