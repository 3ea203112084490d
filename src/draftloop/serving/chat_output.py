"""The text of an answer in a chat becomes content, reasoning and tool calls, piece by piece. Knows no request.

Which marks a model writes around its reasoning and its calls, and how its calls are read, is mlx-lm's knowledge: its
wrapper of a tokenizer says both. A call that its parser cannot read is content, as the model wrote it. Newlines that
touch a mark belong to the format and to nothing else.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from .responses import Piece, ToolCall
from .text_stream import first_of, held_back

_CONTENT, _REASONING, _CALL = "normal", "reasoning", "tool"  # mlx-lm's names of states
_Edges = dict[str, dict[str, str]]  # state -> mark -> the state that it leads to
_UNREADABLE = (  # what parsers raise on text that is no call: as many kinds as there are formats
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


@dataclass
class _Parts:
    """What a piece is made of."""

    texts: dict[str, list[str]] = field(default_factory=lambda: {_CONTENT: [], _REASONING: []})
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, state: str, text: str) -> None:
        """Text of a state; one of neither content nor reasoning is format."""
        if text and state in self.texts:
            self.texts[state].append(text)

    def piece(self) -> Piece:
        return Piece("".join(self.texts[_CONTENT]), "".join(self.texts[_REASONING]), tuple(self.calls))


class ChatOutput:
    """One answer.

    Args:
        tokenizer: as mlx-lm wraps it.
        prompt: tokens that the answer continues; they may have begun its reasoning.
        tools: that may be called; with none, marks of calls are content.

    Attributes:
        calls: tool calls so far.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], tools: Sequence[dict[str, Any]] | None = None) -> None:
        self._parser: Callable[[str, Any], Any] | None = tokenizer.tool_parser if tools else None
        self._tools = list(tools or ())
        self._edges = _edges(tokenizer, with_calls=self._parser is not None)
        self._state = _first_state(tokenizer, prompt)
        self._held = ""  # it may be the beginning of a mark
        self._newlines = ""  # at the end of what went out: content, unless a mark follows
        self._after_mark = self._state != _CONTENT
        self._call: list[str] = []  # the mark that opened a call, and its text so far
        self.calls = 0

    def push(self, text: str) -> Piece:
        """What the next text of the output adds."""
        parts = _Parts()
        self._held += text
        while (found := first_of(self._marks(), self._held)) is not None:
            start, end = found
            self._take(self._held[:start], parts)
            mark, self._held = self._held[start:end], self._held[end:]
            self._pass(mark, parts)
        count = len(self._held) - held_back(self._held, self._marks())
        self._take(self._held[:count], parts)
        self._held = self._held[count:]
        return parts.piece()

    def finish(self, *, ended: bool) -> Piece:
        """What was held back.

        Args:
            ended: the model ended its output. One that was cut short has no call that lacks its closing mark.
        """
        parts = _Parts()
        self._take(self._held, parts)
        self._held = ""
        if self._state == _CALL:
            self._close_call("", parts, readable=ended or not self._marks())
        parts.add(self._state, self._newlines)
        self._newlines = ""
        return parts.piece()

    def _marks(self) -> dict[str, str]:
        return self._edges.get(self._state, {})

    def _take(self, text: str, parts: _Parts) -> None:
        """Text of the present state, in which no mark is."""
        if self._state == _CALL:
            self._call.append(text)
            return
        text = self._newlines + text
        if self._after_mark:
            text = text.lstrip("\n")
            self._after_mark = not text
        kept = text.rstrip("\n") if self._edges else text
        self._newlines = text[len(kept) :]
        parts.add(self._state, kept)

    def _pass(self, mark: str, parts: _Parts) -> None:
        """Go where a mark leads."""
        following = self._marks()[mark]
        self._after_mark = True
        if self._state == _CALL:
            self._close_call(mark, parts, readable=True)
        elif following == _CALL:
            self._call = [self._newlines, mark]
        self._newlines = ""
        self._state = following

    def _close_call(self, mark: str, parts: _Parts, *, readable: bool) -> None:
        newlines, opening, *texts = self._call
        text, self._call = "".join(texts), []
        calls = list(self._read(text)) if readable else []
        parts.calls += calls
        if not calls:
            parts.add(_CONTENT, newlines + opening + text + mark)
            self._after_mark = False

    def _read(self, text: str) -> Iterator[ToolCall]:
        """The calls in a text; none where the parser, or what it gives, cannot be read."""
        assert self._parser is not None
        try:
            found = self._parser(text, self._tools)
            calls = [_name_and_arguments(call) for call in (found if isinstance(found, list) else [found])]
        except _UNREADABLE:
            return
        for name, arguments, given in calls:
            yield ToolCall(self.calls, given or new_call_id(), name, arguments)
            self.calls += 1


def new_call_id() -> str:
    """Nine letters and digits: some models' templates want a call's id so when it comes back."""
    return secrets.token_hex(5)[:9]


def _edges(tokenizer: Any, *, with_calls: bool) -> _Edges:
    """Every mark that the model's format has in a state, and the state that it leads to."""
    edges: _Edges = {_CONTENT: {}, _REASONING: {}, _CALL: {}}
    if tokenizer.has_thinking:
        edges[_CONTENT][tokenizer.think_start] = _REASONING
        edges[_REASONING][tokenizer.think_end] = _CONTENT
    own = [edge for state in tokenizer.response_transitions.values() for edge in state]
    if with_calls and all(following != _CALL for _, following in own):
        edges[_CONTENT][tokenizer.tool_call_start] = _CALL
    if with_calls and tokenizer.has_thinking:
        edges[_REASONING][tokenizer.tool_call_start] = _CALL
    if with_calls and tokenizer.tool_call_end:
        edges[_CALL][tokenizer.tool_call_end] = _CONTENT
    edges[_CONTENT] |= dict.fromkeys(tokenizer.structural_markers, _CONTENT)
    for state, marks in tokenizer.response_transitions.items():
        known = {mark: following for mark, following in marks if with_calls or following != _CALL}
        edges[state] = edges.get(state, {}) | known
    return {state: marks for state, marks in edges.items() if marks}


def _first_state(tokenizer: Any, prompt: Sequence[int]) -> str:
    if tokenizer.response_initial_state is not None:
        return str(tokenizer.response_initial_state)
    if not tokenizer.has_thinking:
        return _CONTENT
    tokens = list(prompt)
    thinks = tokenizer.rfind_think_start(tokens) > tokenizer.rfind_think_end(tokens)
    return _REASONING if thinks else _CONTENT


def _name_and_arguments(call: Any) -> tuple[str, str, str | None]:
    """A call's name, its arguments as JSON, and the id that the model gave it.

    Raises:
        TypeError, ValueError, LookupError: it is no call.
    """
    name, arguments, given = call["name"], call.get("arguments", {}), call.get("id")
    if isinstance(arguments, str):  # some models write JSON in JSON
        arguments = orjson.loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError(f"a call has a name and an object of arguments, found {type(arguments).__name__}")
    return name, orjson.dumps(arguments).decode(), given if isinstance(given, str) else None
