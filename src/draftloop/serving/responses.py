"""What clients read: OpenAI's objects as plain dictionaries for orjson, whole answers and chunks. Knows no decoding.

Beside OpenAI's members there are those that others added: `reasoning_content` and, with the same text, `reasoning`; and
llama.cpp's `timings`, with the acceptance length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

_LEAST_LOG_PROB = -9999.0  # OpenAI's, for what has no mass: JSON has no infinity
_INCOMPLETE = "\ufffd"

Ending = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True)
class ToolCall:
    """A call that the model made: `index` in the answer, `arguments` as the JSON text of an object."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class NamedLogprob:
    """A token of the output, and log p of it under the target.

    Attributes:
        text: of the token alone; U+FFFD where it is a part of a character.
        log_prob: -inf where the sampler leaves it no mass.
        top: the most probable tokens at its position, text and log p each, the most probable first.
        offset: where it begins in the output, in characters.
    """

    text: str
    log_prob: float
    top: tuple[tuple[str, float], ...] = ()
    offset: int = 0


@dataclass(frozen=True)
class Piece:
    """What is new of an answer.

    Attributes:
        text: content of a chat, or the text of a completion.
        reasoning: what stands between the marks of thinking.
        tool_calls: whole ones.
        tokens: of all three; empty where log-probabilities were not asked for.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tokens: tuple[NamedLogprob, ...] = ()

    @classmethod
    def joined(cls, pieces: Iterable[Piece]) -> Piece:
        """One piece of several in their order."""
        parts = list(pieces)
        return cls(
            "".join(part.text for part in parts),
            "".join(part.reasoning for part in parts),
            tuple(call for part in parts for call in part.tool_calls),
            tuple(token for part in parts for token in part.tokens),
        )


@dataclass(frozen=True)
class Usage:
    """Counts of tokens; `accepted` and `rejected` are proposals of the draft."""

    prompt: int
    completion: int
    cached: int = 0
    accepted: int = 0
    rejected: int = 0

    def to_json(self) -> dict[str, Any]:
        """OpenAI's member `usage`."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {
                "accepted_prediction_tokens": self.accepted,
                "rejected_prediction_tokens": self.rejected,
            },
        }


@dataclass(frozen=True)
class Timings:
    """How long it took; llama.cpp's names.

    Attributes:
        prompt_n: prompt tokens that were computed, and `prompt_ms` how long that took.
        predicted_n: tokens of the output, and `predicted_ms` how long they took.
        cache_n: prompt tokens that were not computed, because a cache had them.
        draft_n: drafted tokens, and `draft_n_accepted` how many of them were accepted.
        rounds: of draft and verification, plain steps included.
    """

    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float
    cache_n: int = 0
    draft_n: int = 0
    draft_n_accepted: int = 0
    rounds: int = 0

    def to_json(self) -> dict[str, Any]:
        """llama.cpp's member `timings`."""
        return {
            "prompt_n": self.prompt_n,
            "prompt_ms": self.prompt_ms,
            "predicted_n": self.predicted_n,
            "predicted_ms": self.predicted_ms,
            "predicted_per_second": 1000.0 * self.predicted_n / self.predicted_ms if self.predicted_ms > 0 else None,
            "cache_n": self.cache_n,
            "draft_n": self.draft_n,
            "draft_n_accepted": self.draft_n_accepted,
            "acceptance_length": self.predicted_n / self.rounds if self.rounds else None,
        }


@dataclass(frozen=True)
class Finished:
    """How an answer ended, and what it took."""

    finish: Ending
    usage: Usage
    timings: Timings

    @property
    def reason(self) -> str:
        """OpenAI's `finish_reason`; what was cancelled is cut as at a length."""
        return "length" if self.finish == "cancelled" else self.finish


@dataclass(frozen=True)
class AnswerHead:
    """What all objects of one answer have in common; `created` in unix seconds."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    def object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An object of this answer."""
        common = {"created": self.created, "model": self.model, "system_fingerprint": self.system_fingerprint}
        return {"id": self.id, "object": kind, **common, "choices": choices}


def chat_completion(head: AnswerHead, answer: Piece, end: Finished) -> dict[str, Any]:
    """A whole answer in a chat."""
    content = None if answer.tool_calls and not answer.text else answer.text
    calls = {"tool_calls": [_call(call) for call in answer.tool_calls]} if answer.tool_calls else {}
    message = {"role": "assistant", "content": content, "refusal": None, **_reasoning(answer), **calls}
    choice = {"index": 0, "message": message, "logprobs": _chat_logprobs(answer.tokens), "finish_reason": end.reason}
    return head.object("chat.completion", [choice]) | _counts(end)


def chat_chunk(head: AnswerHead, piece: Piece | None = None, end: Finished | None = None) -> dict[str, Any]:
    """A chunk of a chat's stream: without a piece and an end the first one, with the role."""
    delta: dict[str, Any] = {"role": "assistant", "content": ""} if piece is None and end is None else {}
    if piece is not None:
        delta |= ({"content": piece.text} if piece.text else {}) | _reasoning(piece)
        if piece.tool_calls:
            delta["tool_calls"] = [{"index": call.index, **_call(call)} for call in piece.tool_calls]
    logprobs = None if piece is None else _chat_logprobs(piece.tokens)
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": end and end.reason}
    return head.object("chat.completion.chunk", [choice]) | _timings(end)


def text_completion(head: AnswerHead, answer: Piece, end: Finished) -> dict[str, Any]:
    """A whole completion of a text."""
    return text_chunk(head, answer, end) | _counts(end)


def text_chunk(head: AnswerHead, piece: Piece | None = None, end: Finished | None = None) -> dict[str, Any]:
    """A chunk of a completion's stream: it has the same kind as the whole."""
    piece = piece or Piece()
    logprobs = _text_logprobs(piece.tokens)
    choice = {"index": 0, "text": piece.text, "logprobs": logprobs, "finish_reason": end and end.reason}
    return head.object("text_completion", [choice]) | _timings(end)


def usage_chunk(head: AnswerHead, kind: Literal["chat", "text"], usage: Usage) -> dict[str, Any]:
    """The last chunk of a stream whose request wants to know the counts."""
    name = "chat.completion.chunk" if kind == "chat" else "text_completion"
    return head.object(name, []) | {"usage": usage.to_json()}


def models_list(names: Sequence[str], created: int) -> dict[str, Any]:
    """The models that requests may name."""
    return {"object": "list", "data": [model_object(name, created) for name in names]}


def model_object(name: str, created: int) -> dict[str, Any]:
    """One of them."""
    return {"id": name, "object": "model", "created": created, "owned_by": "draftloop"}


def _counts(end: Finished) -> dict[str, Any]:
    return {"usage": end.usage.to_json()} | _timings(end)


def _timings(end: Finished | None) -> dict[str, Any]:
    return {} if end is None else {"timings": end.timings.to_json()}


def _reasoning(piece: Piece) -> dict[str, str]:
    return {"reasoning_content": piece.reasoning, "reasoning": piece.reasoning} if piece.reasoning else {}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _chat_logprobs(tokens: Sequence[NamedLogprob]) -> dict[str, Any] | None:
    if not tokens:
        return None
    entries = [
        _entry(token.text, token.log_prob) | {"top_logprobs": [_entry(text, log_prob) for text, log_prob in token.top]}
        for token in tokens
    ]
    return {"content": entries, "refusal": None}


def _entry(text: str, log_prob: float) -> dict[str, Any]:
    """A token; its bytes are unknown where it is a part of a character."""
    in_bytes = None if _INCOMPLETE in text else list(text.encode())
    return {"token": text, "logprob": _finite(log_prob), "bytes": in_bytes}


def _text_logprobs(tokens: Sequence[NamedLogprob]) -> dict[str, Any] | None:
    if not tokens:
        return None
    tops: list[dict[str, float]] = [{} for _ in tokens]
    for top, token in zip(tops, tokens, strict=True):
        for text, log_prob in token.top:
            top.setdefault(text, _finite(log_prob))  # of tokens with the same text the most probable
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [_finite(token.log_prob) for token in tokens],
        "top_logprobs": tops if any(tops) else None,
        "text_offset": [token.offset for token in tokens],
    }


def _finite(log_prob: float) -> float:
    return max(log_prob, _LEAST_LOG_PROB)
