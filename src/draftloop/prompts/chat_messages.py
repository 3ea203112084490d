"""Convert chat messages as clients write them to one form: OpenAI's, with text contents. Knows no file and no template.

Nothing of a message is lost: calls of tools, their ids, names and reasoning go to the chat template and the record.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..store.json_values import why_not_kept
from .prompt import Prompt, Unusable

_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # and its key
_MEDIA = ("images", "videos", "audios")  # beside a text, as Ollama and LLaMA-Factory have them
SYSTEM_ROLES = ("system", "developer")  # roles that ask nothing


class NoPrompt(Exception):
    """A value that is no prompt; `why` has a word to count by, and the case."""

    def __init__(self, detail: str, reason: str = "bad line") -> None:
        """Say what was found."""
        super().__init__(detail)
        self.why = Unusable(reason, detail)


def chat_prompt(messages: Sequence[Any], tools: Any = None) -> tuple[Prompt, int]:
    """A prompt of chat messages, and how many turns at its end were answers.

    The assistant's last turn is what somebody once got; here the target answers anew, so it is no part of the prompt.

    Args:
        messages: OpenAI's, those of its older functions too.
        tools: as in a request, or None.

    Raises:
        NoPrompt: a message that is none, something other than text in it, or nothing to answer.
    """
    turns = [chat_message(message) for message in messages]
    answers = 0
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
        answers += 1
    if not any(message["role"] not in SYSTEM_ROLES for message in turns):
        raise NoPrompt("its messages ask nothing: no turn is left that an assistant would answer", "empty")
    text = "\n".join(message["content"] for message in turns)
    return Prompt(text, tuple(turns), _tool_list(tools) or None), answers


def _tool_list(tools: Any) -> tuple[dict[str, Any], ...]:
    """Tools as a request has them: a list of objects, or JSON text of one; functions alone are wrapped.

    Raises:
        NoPrompt: they are no such list.
    """
    if isinstance(tools, str) and tools.strip():
        tools = parsed(tools)
    if not tools:
        return ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, dict) for tool in tools):
        raise NoPrompt(f"tools: a list of objects is expected, found {str(tools)[:60]}")
    return tuple(
        tool
        if "function" in tool or "name" not in tool
        else {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
        for tool in tools
    )


def parsed(text: str) -> Any:
    """The value of JSON text. Raises NoPrompt: it is no JSON, or a record could not keep the value."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NoPrompt(f"{text[:40]!r} is not JSON: {error}") from None
    why = why_not_kept(value)
    if why:
        raise NoPrompt(why)
    return value


def check_text_alone(value: Mapping[str, Any]) -> None:
    """Raise NoPrompt where a message, or an object with messages, has a picture or a sound beside its text."""
    for key in _MEDIA:
        if value.get(key):
            raise NoPrompt(f"it has {key}", "not text")


def chat_message(message: Any) -> dict[str, Any]:
    """One message whose content is text, with all else that it has.

    Raises:
        NoPrompt: it is none, or has something other than text.
    """
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not message["role"].strip():
        raise NoPrompt(f'every message is an object with a "role", found {str(message)[:60]}')
    check_text_alone(message)
    kept = {key: value for key, value in message.items() if value is not None}
    content = _without_thoughts(kept.get("content", kept.get("refusal")), kept)
    kept["content"] = _text(content, message["role"])
    called = kept.pop("function_call", None)
    if called is not None and "tool_calls" not in kept:  # as it was before there were tools
        kept["tool_calls"] = [{"type": "function", "function": called}]
    if kept["role"] == "function":
        kept["role"] = "tool"
    calls = kept.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls)):
        raise NoPrompt(f"tool_calls: a list of objects is expected, found {str(calls)[:60]}")
    if "content" not in message and not kept.get("tool_calls"):
        raise NoPrompt(f'a message of the role {message["role"]!r} has no "content": {str(message)[:60]}')
    return kept


def _text(content: Any, role: str) -> str:
    """The text of a content: nothing is no text, and parts of text are joined."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise NoPrompt(f"the content of a message of {role!r} is neither text nor a list of parts: {str(content)[:60]}")
    return "".join(_parts(content))


def _without_thoughts(content: Any, kept: dict[str, Any]) -> Any:
    """A content without its parts of reasoning, which go to where reasoning stands in a message."""
    thoughts = [part for part in content if _is_thought(part)] if isinstance(content, list) else []
    if not thoughts:
        return content
    thought = "".join(_text(part.get("thinking"), kept["role"]) for part in thoughts)
    kept.setdefault("reasoning_content", thought)
    return [part for part in content if not _is_thought(part)]


def _is_thought(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "thinking"


def _parts(content: Iterable[Any]) -> Iterable[str]:
    for part in content:
        text = part
        if isinstance(part, dict):
            kind = part.get("type", "text")
            text = part.get(_TEXT_PARTS[kind]) if isinstance(kind, str) and kind in _TEXT_PARTS else None
        if isinstance(text, str):
            yield text
        else:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise NoPrompt(f"a message has a part that is no text: {str(kind)[:40]}", "not text")
