"""One answer: what the model thread says of it becomes OpenAI's objects, whole or in chunks. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..decoding.token_logprobs import TokenLogprob
from .asked import Asked
from .chat_output import ChatOutput
from .events import Ended, NewText
from .responses import (
    AnswerHead,
    Finished,
    NamedLogprob,
    Piece,
    Timings,
    Usage,
    chat_chunk,
    chat_completion,
    text_chunk,
    text_completion,
    usage_chunk,
)


class Answer:
    """An answer in the making.

    Args:
        asked: what the client wants.
        prompt: tokens.
        head: what all of its objects have in common.
        tokenizer: as mlx-lm wraps it.
    """

    def __init__(self, asked: Asked, prompt: Sequence[int], head: AnswerHead, tokenizer: Any) -> None:
        self._asked, self._head, self._tokenizer = asked, head, tokenizer
        tools = None if isinstance(asked.prompt, tuple) else asked.prompt.tools
        self._chat = ChatOutput(tokenizer, prompt, tools) if asked.kind == "chat" else None

    def piece(self, new: NewText) -> Piece:
        """What new text adds."""
        found = Piece(new.piece.text) if self._chat is None else self._chat.push(new.piece.text)
        named = zip(new.logprobs, new.piece.offsets, strict=True) if new.logprobs else ()
        tokens = tuple(self._named(one, at) for one, at in named)
        return Piece(found.text, found.reasoning, found.tool_calls, tokens)

    def rest(self, end: Ended) -> Piece:
        """What was held back until the end."""
        return Piece() if self._chat is None else self._chat.finish(ended=end.finish == "stop")

    def whole(self, answer: Piece, end: Ended) -> dict[str, Any]:
        """The whole answer."""
        make = text_completion if self._chat is None else chat_completion
        return make(self._head, answer, self._finished(end))

    def first(self) -> Iterator[dict[str, Any]]:
        """What a stream begins with."""
        if self._chat is not None:
            yield chat_chunk(self._head)

    def chunks(self, new: NewText) -> Iterator[dict[str, Any]]:
        """The chunks of new text."""
        yield from self._chunks(self.piece(new))

    def last(self, end: Ended) -> Iterator[dict[str, Any]]:
        """The chunks with which a stream ends."""
        yield from self._chunks(self.rest(end))
        finished = self._finished(end)
        yield (text_chunk if self._chat is None else chat_chunk)(self._head, None, finished)
        if self._asked.include_usage:
            yield usage_chunk(self._head, self._asked.kind, finished.usage)

    def _chunks(self, piece: Piece) -> Iterator[dict[str, Any]]:
        if piece != Piece():
            yield (text_chunk if self._chat is None else chat_chunk)(self._head, piece)

    def _finished(self, end: Ended) -> Finished:
        called = self._chat is not None and self._chat.calls and end.finish == "stop"
        usage = Usage(end.prompt_tokens, end.tokens, end.cached_tokens, end.accepted, end.drafted - end.accepted)
        timings = Timings(
            prompt_n=end.prompt_tokens - end.cached_tokens,
            prompt_ms=1e3 * end.prompt_seconds,
            predicted_n=end.tokens,
            predicted_ms=1e3 * end.output_seconds,
            cache_n=end.cached_tokens,
            draft_n=end.drafted,
            draft_n_accepted=end.accepted,
            rounds=end.rounds,
        )
        return Finished("tool_calls" if called else end.finish, usage, timings)

    def _named(self, one: TokenLogprob, offset: int) -> NamedLogprob:
        top = tuple((self._text(token), value) for token, value in one.top)
        return NamedLogprob(self._text(one.token), one.logprob, top, offset)

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))
