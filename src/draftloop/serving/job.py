"""One request on the model thread: what is wanted, what was decoded of it, and how long that took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..data.records import Finish
from ..decoding.decoder import Decoding, KnownPrefix, Round, Settings, count_rounds
from ..decoding.draft_length import AdaptiveDraftLength
from ..decoding.token_logprobs import TokenLogprob
from ..models.pair import Pair
from .api_error import ApiError
from .asked import Asked
from .events import Ended, Event, NewText, Refused
from .text_stream import TextPiece, TextStream

_BEFORE = 8  # tokens of a prompt that a continuation's first characters depend on


@dataclass
class _Work:
    """What a request has once the model thread has begun with it."""

    pair: Pair
    settings: Settings
    policy: AdaptiveDraftLength | None
    decoding: Decoding
    turns: Iterator[Round | None]
    text: TextStream
    began: float
    latest: float  # when its last token was there, at first as `began`
    read: float | None = None  # when the target had read the prompt
    first: float | None = None  # when its first token was there
    rounds: list[Round] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    emitted: list[int] = field(default_factory=list)  # what the caches have, behind a stop string too
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Job:
    """A request.

    Args:
        asked: what the client wants.
        tokens: of the prompt.
        owner: number of the API key, as text.
        source: under which it is recorded.
        send: takes each event, on the model thread; must not wait.

    Attributes:
        cancelled: set by whoever waits for the answer no more.
        cached: tokens of the prompt that the target had read for an earlier request.
        finish: how it ended; None before, and where it was refused.
        is_captured: whether it becomes a record, decided when it begins.
        reserved: bytes that its caches may come to.
    """

    def __init__(
        self, asked: Asked, tokens: tuple[int, ...], owner: str, source: str, send: Callable[[Event], None]
    ) -> None:
        self.asked, self.tokens, self.owner, self.source, self._send = asked, tokens, owner, source, send
        self.cancelled = threading.Event()
        self.submitted = time.perf_counter()
        self.cached = 0
        self.finish: Finish | None = None
        self.is_captured = False
        self.reserved = 0.0
        self._work: _Work | None = None

    def begin(self, pair: Pair, settings: Settings, policy: AdaptiveDraftLength | None, known: KnownPrefix) -> None:
        """Prepare the decoding. Raises PromptError: it does not fit the pair."""
        decoding = Decoding(pair, self.tokens, settings, policy, known)
        before = self.tokens[-_BEFORE:] if self.asked.kind == "text" else ()
        text = TextStream(pair.tokenizer.detokenizer, self.asked.stop, before)
        self.cached = known.target_length
        now = time.perf_counter()
        self._work = _Work(pair, settings, policy, decoding, decoding.turns(), text, now, now)

    @property
    def work(self) -> _Work:
        """What it has since it began."""
        assert self._work is not None
        return self._work

    @property
    def has_begun(self) -> bool:
        """Whether the model thread has begun with it."""
        return self._work is not None

    @property
    def is_past_prompt(self) -> bool:
        """Whether a token was emitted."""
        return self._work is not None and self._work.first is not None

    def take(self, round_: Round) -> int:
        """Send what a round has brought; returns how many tokens of it are part of the output."""
        work = self.work
        work.latest = time.perf_counter()
        work.first = work.first or work.latest
        work.emitted += round_.tokens
        work.logprobs += round_.logprobs or ()
        before = work.text.read
        self._emit(work.text.push([token for token in round_.tokens if token not in work.pair.stop_tokens]))
        if work.text.stopped:
            round_ = round_.cut(work.text.read - before)  # or the output would be longer, the luckier the draft was
        work.output += round_.tokens
        work.rounds.append(round_)
        return len(round_.tokens)

    def end(self, finish: Finish) -> None:
        """Send what was held back, and the end."""
        self.finish = finish
        now, work = time.perf_counter(), self._work
        if work is None:
            self._send(Ended(finish, len(self.tokens), 0, 0, 0, 0, 0, 0.0, 0.0))
            return
        self._emit(work.text.finish())
        if work.text.stopped and finish == "length":  # what was held back completed a stop string
            self.finish = finish = "stop"
        counts = count_rounds(work.rounds, len(work.output))
        read = work.read or work.began
        self._send(
            Ended(
                finish=finish,
                prompt_tokens=len(self.tokens),
                cached_tokens=self.cached,
                tokens=len(work.output),
                rounds=len(work.rounds),
                drafted=sum(drafted for drafted, _ in counts),
                accepted=sum(accepted for _, accepted in counts),
                prompt_seconds=read - work.began,
                output_seconds=now - read,
            )
        )

    def refuse(self, error: ApiError) -> None:
        """Send why there is no answer."""
        self._send(Refused(error))

    def _emit(self, piece: TextPiece) -> None:
        if not (piece.text or piece.tokens):
            return
        named: tuple[TokenLogprob, ...] = ()
        if self.asked.top_logprobs is not None:
            named = tuple(self.work.logprobs[piece.start : piece.start + len(piece.tokens)])
        self._send(NewText(piece, named))
