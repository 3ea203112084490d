"""A tokenizer's chat template turns messages and tools into tokens. Knows no prompt and no file.

Messages come as clients send them, and templates were written for what transformers gives them. So arguments of calls
are objects, reasoning has the names that templates look for, and a template that takes contents as lists of parts
alone gets them so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..store.json_values import SURROGATE, is_deep, texts
from .chat_marks import Marking, replaced
from .control_tokens import Markers, NotReadable, control_tokens, read_as_text
from .template_sandbox import TemplateFailed, render

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]]

_COPIES = 8  # a template may write a message more than once
_REASONING = ("reasoning_content", "thinking", "reasoning")  # transformers' order
_PROBE = "Is this text here?"
_PROBE_ID = "call00001"  # some templates want nine characters
_PROBE_LIMIT = 100_000  # characters around it: a template may bring a system prompt of its own
_PROBE_TOOL = {"type": "function", "function": {"name": "x", "description": "x", "parameters": {"type": "object"}}}


class TooLong(Exception):
    """A template writes more characters than a prompt may have."""


class ChatTemplate:
    """The template that a tokenizer has.

    Args:
        tokenizer: as mlx-lm wraps it.
        limit: most characters of a text.
        seconds: of CPU time that one may take.
        arguments: what the template is given beside the messages; they win over what is given by default.
        with_tools: it is for messages with tools, for which some tokenizers have another one.

    Raises:
        TemplateFailed: there is none.
    """

    def __init__(
        self, tokenizer: Any, limit: int, seconds: int, arguments: Mapping[str, Any], *, with_tools: bool = False
    ) -> None:
        self._wrapper, self._tokenizer = tokenizer, plain_tokenizer(tokenizer)
        self._limit, self._seconds, self._arguments = limit, seconds, dict(arguments)
        self._template = None if _renders_itself(tokenizer) else chosen(self._tokenizer.chat_template, with_tools)

    def tokens(self, messages: Messages, tools: Tools | None, *, parse_special: bool = False) -> list[int]:
        """The tokens of a chat, up to where the assistant begins.

        Args:
            messages: with text as content, and without lone surrogates.
            tools: likewise; None where there are none.
            parse_special: control tokens that they spell are read as these, not as text.

        Raises:
            TooLong: more characters than the limit.
            TemplateFailed: the template gives no text.
            NotReadable: control tokens that they spell cannot be distinguished from the template's own.
        """
        messages = self._as_templates_want(messages)
        text = self._text(messages, tools)
        self._check_all_written(messages, tools)
        if parse_special:
            return self._tokens(messages, tools, text)
        probe, template = self._written(), self._template or ""
        tokens = control_tokens(self._tokenizer, f"{template}\n{probe}")
        markers = Markers.not_in("".join([template, *texts([messages, tools])]))
        named = (token for name, token in self._tokenizer.special_tokens_map.items() if name in template)
        literal = "\n".join([template, *map(str, named)])  # with the tokens that it has under their names
        composed = tokens.composed(text, probe, literal) if template else frozenset[str]()
        mark = Marking(markers, tokens, composed, replaced(template))
        marked = [mark.all_of(message, tokens.of_role(message["role"])) for message in messages]
        marked_tools = mark.all_of(tools, tokens.control)
        marks = _length([marked, marked_tools]) - _length([messages, tools])
        if not marks:
            return self._tokens(messages, tools, text)
        unmarked = markers.unmark(self._text(marked, marked_tools, marks=_COPIES * marks))
        if unmarked.text != text:
            raise NotReadable("the chat template makes something else of it there than of other text")
        read = read_as_text(self._tokenizer, unmarked, tokens, markers.stand_in)
        return self._tokens(messages, tools, text) if read is None else read

    def _text(self, messages: Messages, tools: Tools | None, marks: int = 0) -> str:
        """As the model is to read them; so many characters of them are marks, and do not count."""
        limit = self._limit + marks
        if self._template is None:
            text = self._by_code(messages, tools, tokenize=False)
            text = None if len(text) > limit else text
        else:
            text = render(self._template, self._variables(messages, tools), limit=limit, seconds=self._seconds)
        if text is None:
            raise TooLong
        if SURROGATE.search(text):
            raise TemplateFailed("it writes text that is not UTF-8")
        return str(text)

    def _tokens(self, messages: Messages, tools: Tools | None, text: str) -> list[int]:
        """As transformers makes them of the text."""
        if self._template is None:
            return [int(token) for token in self._by_code(messages, tools)]
        return [int(token) for token in self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _variables(self, messages: Messages, tools: Tools | None) -> dict[str, Any]:
        """What transformers and mlx-lm give to a template."""
        name = getattr(self._wrapper, "_thinking_kwarg", "enable_thinking")
        arguments = dict(self._arguments)
        if "enable_thinking" in arguments:  # as mlx-lm takes it, whatever this template calls it
            arguments[name] = arguments.pop("enable_thinking")
        given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": True}
        return {**self._tokenizer.special_tokens_map, name: self._wrapper.has_thinking, **given, **arguments}

    def _by_code(self, messages: Messages, tools: Tools | None, **how: bool) -> Any:
        given = {"tools": tools} if tools else {}
        try:
            return self._wrapper.apply_chat_template(
                messages, add_generation_prompt=True, **given, **self._arguments, **how
            )
        except Exception as error:  # as many kinds as there are formats
            raise TemplateFailed(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error

    def _written(self) -> str:
        """What the template writes of a short chat: the control tokens that it puts together are there."""
        ask = {"role": "user", "content": _PROBE}
        chats = ([ask, {"role": "assistant", "content": _PROBE}, ask], [ask])
        return next((text for text in map(self._of_probe, chats) if text), "")

    def _as_templates_want(self, messages: Messages) -> Messages:
        wanted = [_with_reasoning(_with_objects(message)) for message in messages]
        if self._template is None:
            return wanted
        if "developer" not in self._template:  # most know the role under its older name
            wanted = [one | {"role": "system"} if one["role"] == "developer" else one for one in wanted]
        if self._takes_parts():
            wanted = [_in_parts(one) for one in wanted]
        return wanted

    def _check_all_written(self, messages: Messages, tools: Tools | None) -> None:
        """Refuse a chat with a turn that the template leaves out without a word.

        Raises:
            TemplateFailed: it knows no such role.
        """
        for role in sorted({message["role"] for message in messages} - {"user", "assistant"}):
            text = self._of_probe(_chat_with(role), [_PROBE_TOOL] if tools else None)
            if text and _PROBE not in text:
                raise TemplateFailed(f"it writes nothing of a message of the role {role!r}")

    def _takes_parts(self) -> bool:
        """Whether text is lost on this template unless it comes in parts."""
        ask = {"role": "user", "content": _PROBE}
        return _PROBE not in self._rendered([ask]) and _PROBE in self._rendered([_in_parts(ask)])

    def _of_probe(self, messages: Messages, tools: Tools | None = None) -> str:
        """What the template makes of a chat, in the form that it wants; nothing where it fails."""
        return self._rendered([_in_parts(one) for one in messages] if self._takes_parts() else messages, tools)

    def _rendered(self, messages: Messages, tools: Tools | None = None) -> str:
        if self._template is None:
            return ""
        return _rendered_probe(self._template, json.dumps(self._variables(messages, tools)), self._seconds)


@lru_cache(maxsize=64)
def _rendered_probe(template: str, variables: str, seconds: int) -> str:
    """A template's text; nothing where it fails. Asked for with every prompt anew."""
    try:
        return render(template, json.loads(variables), limit=_PROBE_LIMIT, seconds=seconds) or ""
    except TemplateFailed:
        return ""


def _chat_with(role: str) -> Messages:
    """A chat with the probe in a message of a role, where a tool's result would stand too."""
    ask, probe = {"role": "user", "content": "x"}, {"role": role, "content": _PROBE}
    if role == "system":
        return [probe, ask]
    call = {"id": _PROBE_ID, "type": "function", "function": {"name": "x", "arguments": {}}}
    return [ask, {"role": "assistant", "content": "", "tool_calls": [call]}, {**probe, "tool_call_id": _PROBE_ID}]


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    return message | {"content": [{"type": "text", "text": message["content"]}]}


def plain_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer of transformers in mlx-lm's wrapper."""
    return getattr(tokenizer, "_tokenizer", tokenizer)


def has_place_for(tokenizer: Any, what: str) -> bool:
    """Whether the chat template names `tools`, or `tool_calls` of its messages; true where nobody can know."""
    if _renders_itself(tokenizer):
        return True
    templates = plain_tokenizer(tokenizer).chat_template
    return any(what in str(text) for text in (templates.values() if isinstance(templates, dict) else [templates]))


def chosen(templates: Any, with_tools: bool) -> str:
    """The template of a tokenizer that may have several, as transformers chooses it.

    Raises:
        TemplateFailed: none can be chosen.
    """
    named = templates if isinstance(templates, dict) else {"default": templates}
    template = named.get("tool_use", named.get("default")) if with_tools else named.get("default")
    if isinstance(template, str):
        return template
    if isinstance(templates, dict):
        raise TemplateFailed(f"there are several, and none is the default ({', '.join(sorted(map(str, templates)))})")
    raise TemplateFailed(f"it is no text but {str(templates)[:60]}")


def _renders_itself(tokenizer: Any) -> bool:
    """Whether messages become text by Python: mlx-lm's own for a model, or a tokenizer's class."""
    kinds = type(plain_tokenizer(tokenizer)).__mro__
    defines = next((kind for kind in kinds if "apply_chat_template" in vars(kind)), None)
    by_class = defines is not None and defines.__module__ != "transformers.tokenization_utils_base"
    return by_class or getattr(tokenizer, "_chat_template", None) is not None


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """Calls whose arguments are objects: clients send them as JSON text, and templates write them as JSON."""
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function")
        given = function.get("arguments") if isinstance(function, dict) else None
        arguments = _parsed(given or "{}") if isinstance(function, dict) and isinstance(given, str) else None
        if isinstance(arguments, dict) and not is_deep(arguments):
            calls.append(call | {"function": function | {"arguments": arguments}})
        else:
            calls.append(call)
    return message | {"tool_calls": calls} if calls else message


@lru_cache(maxsize=128)
def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a model wrote it, and not always JSON
        return None


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Reasoning under each of the names that templates read, as transformers gives it."""
    reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _length(value: Any) -> int:
    return sum(map(len, texts(value)))
