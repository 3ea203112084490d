"""The formats in which prompts are kept, one JSON object each, told apart by their keys. Knows no file.

    prompt                      text, or chat messages (TRL's prompt and completion)
    messages                    of a chat, with tools: OpenAI's, and a request that was logged
    conversations               ShareGPT's
    instruction, input          alpaca's
    text                        a text to go on from
    input                       a request of OpenAI's responses

A request may lie under a key of a log's line (`request`, `body`, …), also as JSON text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..json_values import why_not_kept
from ..prompts import Prompt
from .chats import NoPrompt, chat_prompt, parsed, tool_list

EXPECTED = "an object with one of prompt, messages, conversations, instruction, text"
_WRAPPED_IN = ("request", "body", "request_body", "payload", "params", "kwargs", "json", "data", "input")
_DEEPEST = 3  # wrappers in one another
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


@dataclass(frozen=True)
class Converted:
    """A prompt, the format that it was in ("" for prompts and messages as they are), and its answers left out."""

    prompt: Prompt
    format: str = ""
    answers: int = 0


class NoFormat(NoPrompt):
    """A value in none of the formats."""


def prompt_of(found: Any) -> Converted:
    """The prompt that a JSON value holds.

    Raises:
        NoPrompt: it holds none, or one that a record could not keep.
    """
    if not isinstance(found, dict):
        raise NoFormat(f"expected {EXPECTED}, found {str(found)[:40]!r}")
    why = why_not_kept(found)
    if why:
        raise NoPrompt(why)
    return _converted(found, 0)


def _converted(found: dict[str, Any], depth: int) -> Converted:
    for has, convert in _FORMATS:
        if has(found):
            return convert(found)
    for key in _WRAPPED_IN if depth < _DEEPEST else ():
        inner = found.get(key)
        inner = parsed(inner) if isinstance(inner, str) and inner.lstrip().startswith("{") else inner
        if isinstance(inner, dict):
            try:
                within = _converted(inner, depth + 1)
            except NoFormat:
                continue  # it lies under another key, or nowhere
            return Converted(within.prompt, within.format or "logged request", within.answers)
    keys = ", ".join(sorted(map(str, found))[:8]) or "none"
    raise NoFormat(f"expected {EXPECTED}; its keys are {keys}"[:200])


def _has_text(key: str) -> Callable[[dict[str, Any]], bool]:
    return lambda found: isinstance(found.get(key), str)


def _has_list(key: str) -> Callable[[dict[str, Any]], bool]:
    return lambda found: isinstance(found.get(key), list) and bool(found[key])


def _messages(found: dict[str, Any], key: str = "messages", format: str = "") -> Converted:  # noqa: A002
    prompt, answers = chat_prompt(found[key], found.get("tools") or found.get("functions"))
    logged = format or ("logged request" if "model" in found else "")
    answers += any(found.get(key) for key in ("response", "completion", "choices"))
    return Converted(prompt, logged, answers)


def _prompt(found: dict[str, Any]) -> Converted:
    answered = isinstance(found.get("completion"), str | list) and bool(found["completion"])
    return Converted(Prompt(found["prompt"]), "prompt and completion" if answered else "", int(answered))


def _conversation_prompt(found: dict[str, Any]) -> Converted:
    return _messages(found, "prompt", "prompt and completion" if found.get("completion") else "")


def _conversation(found: dict[str, Any]) -> Converted:
    key = "conversations" if _has_list("conversations")(found) else "conversation"
    turns = [_turn(turn) for turn in found[key]]
    if isinstance(found.get("system"), str) and found["system"].strip():
        turns.insert(0, {"role": "system", "content": found["system"]})
    prompt, answers = chat_prompt(turns, found.get("tools"))
    return Converted(prompt, "ShareGPT", answers)


def _turn(turn: Any) -> Any:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    who, said = turn["from"], turn.get("value")
    if not isinstance(who, str) or who not in _ROLES:
        raise NoPrompt(f"a turn is from {str(who)[:40]!r}; known are {', '.join(_ROLES)}")
    if who == "function_call" and isinstance(said, str):
        called = parsed(said)
        calls = called if isinstance(called, list) else [called]
        return {"role": "assistant", "tool_calls": [{"type": "function", "function": call} for call in calls]}
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    return {**rest, "role": _ROLES[who], "content": said if "value" in turn else turn.get("content")}


def _instruction(found: dict[str, Any]) -> Converted:
    given = found.get("input")
    asked = "\n\n".join(text for text in (found["instruction"], given) if isinstance(text, str) and text.strip())
    answers = int(bool(found.get("output")))
    turns = [{"role": "system", "content": found["system"]}] if found.get("system") else []
    history = found.get("history") or []
    if not turns and not history:
        return Converted(Prompt(asked), "alpaca", answers)
    for turn in history if isinstance(history, list) else [history]:
        if not isinstance(turn, list) or len(turn) != 2:
            raise NoPrompt(f"history: pairs of a question and an answer are expected, found {str(turn)[:60]}")
        turns += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    prompt, _ = chat_prompt([*turns, {"role": "user", "content": asked}])
    return Converted(prompt, "alpaca", answers)


def _text(found: dict[str, Any]) -> Converted:
    return Converted(Prompt(found["text"]), "text")


def _is_response_request(found: dict[str, Any]) -> bool:
    return "model" in found and isinstance(found.get("input"), str | list) and bool(found["input"])


def _response_request(found: dict[str, Any]) -> Converted:
    given = found["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else [_item(item) for item in given]
    if isinstance(found.get("instructions"), str) and found["instructions"].strip():
        items.insert(0, {"role": "system", "content": found["instructions"]})
    prompt, answers = chat_prompt(items, tool_list(found.get("tools")))
    return Converted(prompt, "logged request", answers)


def _item(item: Any) -> Any:
    """A message out of an item of a request of responses."""
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "function_call":
        called = {key: item.get(key) for key in ("name", "arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": called}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    if kind not in (None, "message"):
        raise NoPrompt(f"its input has an item that is no text: {str(kind)[:40]}", "not text")
    return {key: value for key, value in item.items() if key != "type"} if isinstance(item, dict) else item


_FORMATS: tuple[tuple[Callable[[dict[str, Any]], bool], Callable[[dict[str, Any]], Converted]], ...] = (
    (_has_list("messages"), _messages),
    (_has_list("conversations"), _conversation),
    (_has_list("conversation"), _conversation),
    (_has_list("prompt"), _conversation_prompt),
    (_has_text("prompt"), _prompt),
    (_has_text("instruction"), _instruction),
    (_is_response_request, _response_request),
    (_has_text("text"), _text),
)
