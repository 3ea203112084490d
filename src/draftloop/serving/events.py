"""What the model thread tells whoever waits for an answer, in this order: pieces of it, then how it ended."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.records import Finish
from ..decoding.token_logprobs import TokenLogprob
from .api_error import ApiError
from .text_stream import TextPiece


@dataclass(frozen=True)
class NewText:
    """More of the output; `logprobs` is of its tokens where they were asked for, else empty."""

    piece: TextPiece
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Ended:
    """The answer is complete, as far as it goes.

    Attributes:
        finish: `stop`, `length` or `cancelled`.
        prompt_tokens, cached_tokens: of the prompt, and those of it that an earlier request had read.
        tokens: of the output, a stop token included.
        rounds, drafted, accepted: of speculation; proposals past the end are not counted.
        prompt_seconds, output_seconds: until the target had read the prompt, and from there on; without the queue.
    """

    finish: Finish
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    rounds: int
    drafted: int
    accepted: int
    prompt_seconds: float
    output_seconds: float


@dataclass(frozen=True)
class Refused:
    """There is no answer, or no more of it."""

    error: ApiError


Event = NewText | Ended | Refused
