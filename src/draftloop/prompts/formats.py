"""Convert the formats of prompts, one JSON object each, told apart by their keys. Knows no file.

    prompt                      text, or chat messages (TRL's prompt and completion)
    messages                    of a chat, with tools: OpenAI's, and a request that was logged
    conversations               ShareGPT's
    instruction, input          alpaca's; Dolly calls the input `context`
    input                       a request of OpenAI's responses
    chosen                      of a preference whose prompt is in both answers (TRL's)
    text                        a text to go on from

A request may lie under a key of a log's line (`request`, `body`, …), also as JSON text. A text by itself is tried
last: a line of a log may have one beside its request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from ..store.json_values import why_not_kept
from .chat_messages import SYSTEM_ROLES, NoPrompt, chat_prompt, check_text_alone, parsed
from .prompt import Prompt

EXPECTED = "an object with one of prompt, messages, conversations, instruction, text"
_WRAPPED_IN = (
    *("request", "body", "request_body", "proxy_server_request", "payload", "content", "params", "kwargs", "json"),
    *("data", "input", "inputs"),
)
_DEEPEST = 3  # wrappers in one another
_SETTINGS = ("model_parameters", "optional_params")  # of a request, where a log has them by themselves
_ANSWERS = ("output", "response", "completion", "choices")
_NO_CHAT = re.compile("embed|moderation|tts|rerank", re.IGNORECASE)  # what else has a model and an input
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


def prompt_of(entry: Any) -> Converted:
    """The prompt that a JSON value holds.

    Raises:
        NoPrompt: it holds none, or one that a record could not keep.
    """
    if not isinstance(entry, dict):
        raise NoFormat(f"expected {EXPECTED}, found {json.dumps(entry)[:40]}")
    why = why_not_kept(entry)
    if why:
        raise NoPrompt(why)
    return _converted(entry, 0)


def _converted(entry: dict[str, Any], depth: int) -> Converted:
    for has, convert in _FORMATS:
        if has(entry):
            check_text_alone(entry)
            return convert(entry)
    for key in _WRAPPED_IN if depth < _DEEPEST else ():
        inner = entry.get(key)
        inner = parsed(inner) if isinstance(inner, str) and inner.lstrip().startswith("{") else inner
        if isinstance(inner, dict):
            try:
                within = _converted(inner, depth + 1)
            except NoFormat:
                continue  # it lies under another key, or nowhere
            return Converted(within.prompt, within.format or "logged request", within.answers)
    if isinstance(entry.get("text"), str):
        if _ROLES.get(str(entry.get("role"))) == "assistant":  # OpenAssistant's messages, one per line
            raise NoPrompt("it is what an assistant said", "empty")
        return Converted(Prompt(entry["text"]), "text")
    raise NoFormat(_why_in_no_format(entry)[:200])


def _why_in_no_format(entry: dict[str, Any]) -> str:
    if "role" in entry and "content" in entry:
        return 'a message alone is no prompt; the messages of a chat go into one object: {"messages": [...]}'
    known = next((key for key in ("messages", "prompt", "conversations", "instruction", "text") if key in entry), None)
    if known is not None:
        wanted = "a list of messages" if known in ("messages", "conversations") else "a text"
        return f"{known} is {json.dumps(entry[known])[:40]}, expected {wanted}"
    return f"expected {EXPECTED}; its keys are {', '.join(sorted(map(str, entry))[:8]) or 'none'}"


def _listed(entry: dict[str, Any], key: str) -> list[Any]:
    """What is under a key, where it is a list or JSON text of one; else an empty one."""
    value = entry.get(key)
    value = parsed(value) if isinstance(value, str) and _LIST_OF_OBJECTS.match(value) else value
    return value if isinstance(value, list) else []


def _chat(entry: dict[str, Any], turns: list[Any]) -> tuple[Prompt, int]:
    """A chat of these turns, with the tools and the system's message that stand beside them."""
    own = bool(turns) and isinstance(turns[0], dict) and turns[0].get("role") in SYSTEM_ROLES
    system = None if own else _system_text(entry)
    return chat_prompt(turns if system is None else [{"role": "system", "content": system}, *turns], _tools(entry))


def _system_text(entry: dict[str, Any]) -> Any:
    return next((entry[key] for key in ("system", "system_prompt", "instructions") if entry.get(key)), None)


def _tools(entry: dict[str, Any]) -> Any:
    settings = (entry[key] for key in _SETTINGS if isinstance(entry.get(key), dict))
    return next((of[key] for of in (entry, *settings) for key in ("tools", "functions") if of.get(key)), None)


def _answered(entry: dict[str, Any]) -> int:
    return int(any(entry.get(key) for key in _ANSWERS))


def _messages(entry: dict[str, Any], key: str = "messages", format: str = "") -> Converted:  # noqa: A002
    prompt, answers = _chat(entry, _listed(entry, key))
    logged = format or ("logged request" if "model" in entry else "")
    return Converted(prompt, logged, answers or _answered(entry))


def _prompt(entry: dict[str, Any]) -> Converted:
    """A prompt of text; a chat where it comes with a system message or tools."""
    kind = "prompt and completion" if entry.get("completion") else "logged request" if "model" in entry else ""
    return Converted(_asked(entry, entry["prompt"]), kind, _answered(entry))


def _asked(entry: dict[str, Any], text: str) -> Prompt:
    if not _system_text(entry) and not _tools(entry):
        return Prompt(text)
    prompt, _ = _chat(entry, [{"role": "user", "content": text}])
    return prompt


def _prompt_list(entry: dict[str, Any]) -> Converted:
    """Messages, or the prompts of a request for completions: texts or token ids."""
    given = entry["prompt"]
    if len(given) == 1 and isinstance(given[0], str):
        return _prompt({**entry, "prompt": given[0]})
    if not any(isinstance(one, dict) for one in given):
        raise NoPrompt(f"a prompt of {len(given):,} texts or token ids; expected one text, or chat messages")
    return _messages(entry, "prompt", "prompt and completion" if entry.get("completion") else "")


def _conversation(entry: dict[str, Any]) -> Converted:
    turns = _listed(entry, "conversations") or _listed(entry, "conversation")
    prompt, answers = _chat(entry, [_turn(turn) for turn in turns])
    return Converted(prompt, "ShareGPT", answers)


def _turn(turn: Any) -> Any:
    if not isinstance(turn, dict) or not ("from" in turn or "value" in turn):
        return turn
    who, said = turn.get("from", turn.get("role")), turn.get("value")
    who = who.lower() if isinstance(who, str) else who
    if not isinstance(who, str) or who not in _ROLES:
        raise NoPrompt(f"a turn is from {str(who)[:40]!r}; known are {', '.join(_ROLES)}")
    if who == "function_call" and isinstance(said, str):
        called = parsed(said)
        calls = called if isinstance(called, list) else [called]
        return {"role": "assistant", "tool_calls": [{"type": "function", "function": call} for call in calls]}
    rest = {key: value for key, value in turn.items() if key not in ("from", "value", "role")}
    return {**rest, "role": _ROLES[who], "content": said if "value" in turn else turn.get("content")}


def _instruction(entry: dict[str, Any]) -> Converted:
    asked = "\n\n".join(text for text in (_part(entry, key) for key in ("instruction", "input", "context")) if text)
    turns, history = [], entry.get("history") or []
    if not history:
        return Converted(_asked(entry, asked), "alpaca", _answered(entry))
    for turn in history if isinstance(history, list) else [history]:
        if not isinstance(turn, list) or len(turn) != 2:
            raise NoPrompt(f"history: pairs of a question and an answer are expected, found {str(turn)[:60]}")
        turns += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    prompt, _ = _chat(entry, [*turns, {"role": "user", "content": asked}])
    return Converted(prompt, "alpaca", _answered(entry))


def _part(entry: dict[str, Any], key: str) -> str:
    """A part of the instruction; empty where it is left out or blank."""
    given = entry.get(key)
    if given is not None and not isinstance(given, str):
        raise NoPrompt(f"{key}: a text is expected, found {str(given)[:60]}")
    return given if given and given.strip() else ""


def _is_response_request(entry: dict[str, Any]) -> bool:
    other = "voice" in entry or _NO_CHAT.search(str(entry.get("model")))
    return "model" in entry and isinstance(entry.get("input"), str | list) and bool(entry["input"]) and not other


def _response_request(entry: dict[str, Any]) -> Converted:
    if entry.get("previous_response_id") or entry.get("conversation"):
        raise NoPrompt("it goes on from a response that is not in the log")
    given = entry["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else _of_items(given)
    prompt, answers = _chat(entry, items)
    return Converted(prompt, "logged request", answers or _answered(entry))


def _of_items(items: list[Any]) -> list[Any]:
    """Messages out of the items of a request of responses: reasoning, text and calls of one answer are one message."""
    messages: list[Any] = []
    for message in map(_item, items):
        last = messages[-1] if messages else None
        if _is_assistant(last) and _is_assistant(message) and not (last.get("content") and message.get("content")):
            calls = [*_listed(last, "tool_calls"), *_listed(message, "tool_calls")]
            content = last.get("content") or message.get("content")
            messages[-1] = {**last, **message, "content": content, **({"tool_calls": calls} if calls else {})}
        else:
            messages.append(message)
    return messages


def _is_assistant(message: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(message, dict) and message.get("role") == "assistant"


def _item(item: Any) -> Any:
    """A message out of an item of a request of responses."""
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "function_call":
        called = {key: item.get(key) for key in ("name", "arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": called}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    if kind == "reasoning":
        said = [*_listed(item, "content"), *_listed(item, "summary")]  # mostly only encrypted
        thought = "\n".join(
            part["text"] for part in said if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
        return {"role": "assistant", "content": None, **({"reasoning_content": thought} if thought else {})}
    if kind not in (None, "message"):
        raise NoPrompt(f"its input has an item that is no text: {str(kind)[:40]}", "not text")
    return {key: value for key, value in item.items() if key != "type"} if isinstance(item, dict) else item


_LIST_OF_OBJECTS = re.compile(r"\s*\[\s*\{")
_FORMATS: tuple[tuple[Callable[[dict[str, Any]], object], Callable[[dict[str, Any]], Converted]], ...] = (
    (lambda entry: _listed(entry, "messages"), _messages),
    (lambda entry: _listed(entry, "conversations") or _listed(entry, "conversation"), _conversation),
    (lambda entry: _listed(entry, "prompt"), _prompt_list),
    (lambda entry: isinstance(entry.get("prompt"), str), _prompt),
    (lambda entry: isinstance(entry.get("instruction"), str), _instruction),
    (_is_response_request, _response_request),
    (lambda entry: _listed(entry, "chosen"), lambda entry: _messages(entry, "chosen", "preference")),
)
