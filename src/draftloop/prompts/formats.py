"""The formats in which prompts are kept, one JSON object each, told apart by their keys. Knows no file.

    prompt                      text, or chat messages (TRL's prompt and completion)
    messages                    of a chat, with tools: OpenAI's, and a request that was logged
    conversations               ShareGPT's
    instruction, input          alpaca's; Dolly calls the input `context`
    input                       a request of OpenAI's responses
    chosen                      of a preference whose prompt is in both answers (TRL's)
    text                        a text to go on from

A request may lie under a key of a log's line (`request`, `body`, …), also as JSON text. A text by itself is looked for
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


def prompt_of(found: Any) -> Converted:
    """The prompt that a JSON value holds.

    Raises:
        NoPrompt: it holds none, or one that a record could not keep.
    """
    if not isinstance(found, dict):
        raise NoFormat(f"expected {EXPECTED}, found {json.dumps(found)[:40]}")
    why = why_not_kept(found)
    if why:
        raise NoPrompt(why)
    return _converted(found, 0)


def _converted(found: dict[str, Any], depth: int) -> Converted:
    for has, convert in _FORMATS:
        if has(found):
            check_text_alone(found)
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
    if isinstance(found.get("text"), str):
        if _ROLES.get(str(found.get("role"))) == "assistant":  # OpenAssistant's messages, one a line
            raise NoPrompt("it is what an assistant said", "empty")
        return Converted(Prompt(found["text"]), "text")
    raise NoFormat(_why_in_no_format(found)[:200])


def _why_in_no_format(found: dict[str, Any]) -> str:
    if "role" in found and "content" in found:
        return 'a message alone is no prompt; the messages of a chat go into one object: {"messages": [...]}'
    known = next((key for key in ("messages", "prompt", "conversations", "instruction", "text") if key in found), None)
    if known is not None:
        wanted = "a list of messages" if known in ("messages", "conversations") else "a text"
        return f"{known} is {json.dumps(found[known])[:40]}, expected {wanted}"
    return f"expected {EXPECTED}; its keys are {', '.join(sorted(map(str, found))[:8]) or 'none'}"


def _listed(found: dict[str, Any], key: str) -> list[Any]:
    """What is under a key, where it is a list or JSON text of one; else an empty one."""
    value = found.get(key)
    value = parsed(value) if isinstance(value, str) and _LIST_OF_OBJECTS.match(value) else value
    return value if isinstance(value, list) else []


def _chat(found: dict[str, Any], turns: list[Any]) -> tuple[Prompt, int]:
    """A chat of these turns, with the tools and the system's message that stand beside them."""
    own = bool(turns) and isinstance(turns[0], dict) and turns[0].get("role") in SYSTEM_ROLES
    told = None if own else _told(found)
    return chat_prompt(turns if told is None else [{"role": "system", "content": told}, *turns], _tools(found))


def _told(found: dict[str, Any]) -> Any:
    return next((found[key] for key in ("system", "system_prompt", "instructions") if found.get(key)), None)


def _tools(found: dict[str, Any]) -> Any:
    settings = (found[key] for key in _SETTINGS if isinstance(found.get(key), dict))
    return next((of[key] for of in (found, *settings) for key in ("tools", "functions") if of.get(key)), None)


def _answered(found: dict[str, Any]) -> int:
    return int(any(found.get(key) for key in _ANSWERS))


def _messages(found: dict[str, Any], key: str = "messages", format: str = "") -> Converted:  # noqa: A002
    prompt, answers = _chat(found, _listed(found, key))
    logged = format or ("logged request" if "model" in found else "")
    return Converted(prompt, logged, answers or _answered(found))


def _prompt(found: dict[str, Any]) -> Converted:
    """Text; a chat of it where there is what a text has no place for."""
    kind = "prompt and completion" if found.get("completion") else "logged request" if "model" in found else ""
    return Converted(_asked(found, found["prompt"]), kind, _answered(found))


def _asked(found: dict[str, Any], text: str) -> Prompt:
    if not _told(found) and not _tools(found):
        return Prompt(text)
    prompt, _ = _chat(found, [{"role": "user", "content": text}])
    return prompt


def _prompt_list(found: dict[str, Any]) -> Converted:
    """Messages, or the prompts of a request for completions: texts or token ids."""
    given = found["prompt"]
    if len(given) == 1 and isinstance(given[0], str):
        return _prompt({**found, "prompt": given[0]})
    if not any(isinstance(one, dict) for one in given):
        raise NoPrompt(f"a prompt of {len(given):,} texts or token ids; expected one text, or chat messages")
    return _messages(found, "prompt", "prompt and completion" if found.get("completion") else "")


def _conversation(found: dict[str, Any]) -> Converted:
    turns = _listed(found, "conversations") or _listed(found, "conversation")
    prompt, answers = _chat(found, [_turn(turn) for turn in turns])
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


def _instruction(found: dict[str, Any]) -> Converted:
    asked = "\n\n".join(text for text in (_part(found, key) for key in ("instruction", "input", "context")) if text)
    turns, history = [], found.get("history") or []
    if not history:
        return Converted(_asked(found, asked), "alpaca", _answered(found))
    for turn in history if isinstance(history, list) else [history]:
        if not isinstance(turn, list) or len(turn) != 2:
            raise NoPrompt(f"history: pairs of a question and an answer are expected, found {str(turn)[:60]}")
        turns += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    prompt, _ = _chat(found, [*turns, {"role": "user", "content": asked}])
    return Converted(prompt, "alpaca", _answered(found))


def _part(found: dict[str, Any], key: str) -> str:
    """Of what was asked; nothing where it is left out or blank."""
    given = found.get(key)
    if given is not None and not isinstance(given, str):
        raise NoPrompt(f"{key}: a text is expected, found {str(given)[:60]}")
    return given if given and given.strip() else ""


def _is_response_request(found: dict[str, Any]) -> bool:
    other = "voice" in found or _NO_CHAT.search(str(found.get("model")))
    return "model" in found and isinstance(found.get("input"), str | list) and bool(found["input"]) and not other


def _response_request(found: dict[str, Any]) -> Converted:
    if found.get("previous_response_id") or found.get("conversation"):
        raise NoPrompt("it goes on from a response that is not in the log")
    given = found["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else _of_items(given)
    prompt, answers = _chat(found, items)
    return Converted(prompt, "logged request", answers or _answered(found))


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
    (lambda found: _listed(found, "messages"), _messages),
    (lambda found: _listed(found, "conversations") or _listed(found, "conversation"), _conversation),
    (lambda found: _listed(found, "prompt"), _prompt_list),
    (lambda found: isinstance(found.get("prompt"), str), _prompt),
    (lambda found: isinstance(found.get("instruction"), str), _instruction),
    (_is_response_request, _response_request),
    (lambda found: _listed(found, "chosen"), lambda found: _messages(found, "chosen", "preference")),
)
