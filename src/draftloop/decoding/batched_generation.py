"""Batched generation: many outputs of one model at a time, through mlx-lm's batches. Knows no draft and no record.

A model reads its weights once for the whole batch, so many outputs cost little more than one. Every output has a
random stream of its own: which others are in its batch, and the order of the requests, change nothing in it but for the
last bits of a larger matrix product.

mlx-lm calls one sampler for the whole batch at once, without saying which outputs the rows are. `_Batch` knows: rows
stay in the order in which they began. mlx-lm normalises the logits before it gives them to the sampler, which nobody
needs: so `_LogitsAside` gives it one column, and keeps the logits for the sampler.

Whenever a row leaves or joins, mlx-lm copies the caches of all others, which on a CPU takes as long as ten steps. So
rows whose output has ended stay until they are many, and their tokens are dropped.

A model whose outputs would be others in a batch (`batch_probe`) generates them one after the other.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import KVCache, make_prompt_cache

from ..data.records import Sampler
from ..errors import DraftloopError
from ..runtime.memory import REFUSALS, is_out_of_memory
from . import prompt_caches
from .batch_probe import batches_exactly
from .draws import draw_tokens, exponentials_per_draw
from .random_stream import RandomStream
from .sampling_filters import sampling_probs

T = TypeVar("T")
MOST_ROWS = 128
_TOKENS_AT_ONCE = 32_768  # of prompt and output in the caches of one batch
_PROMPT_TOKENS_AT_ONCE = 8_192  # in one pass: what it makes on the way takes memory too
_TURNOVER = 4  # on a GPU, one in so many rows has to be free before other outputs begin; on a CPU all have to be
_NEVER = 1 << 30  # tokens


class NoRoom(DraftloopError):
    """Not even one output at a time fits into memory."""


@dataclass(frozen=True)
class OutputRequest:
    """An output to generate.

    Attributes:
        prompt: tokens, at least one.
        sampler: with the seed of this very output.
        most: tokens, at least one.
    """

    prompt: tuple[int, ...]
    sampler: Sampler
    most: int


@dataclass(frozen=True)
class FinishedOutput:
    """A finished output.

    Attributes:
        place: index of its request.
        tokens: N of them.
        p: (N, width) float32, the distribution that each was drawn from, evaluated; None where that was not kept.
    """

    place: int
    tokens: tuple[int, ...]
    p: mx.array | None


def generate_batched(
    model: nn.Module,
    requests: Sequence[OutputRequest],
    *,
    width: int,
    stop_tokens: frozenset[int],
    room: float = math.inf,
    enough: Callable[[], bool] = lambda: False,
    p_bytes: float = 0,
    on_tokens: Callable[[int], None] = lambda _count: None,
) -> Iterator[FinishedOutput]:
    """Generate the output of every request.

    Args:
        model: generates.
        requests: in any order.
        width: no token from there on is sampled.
        stop_tokens: end an output, and are its last token.
        room: bytes for the caches of one batch. Out of memory all the same, it generates what is missing in batches of
            half the size.
        enough: called before every step; where it is true, unfinished outputs are dropped. It may raise to stop.
        p_bytes: for the distributions that tokens are drawn from: they are kept where those of all rows fit.
        on_tokens: called after every step with the number of tokens generated in it. Tokens of outputs that ran out of
            memory come again.

    Yields:
        Each output as it is finished.

    Raises:
        NoRoom: out of memory with a single output.
    """
    together = _in_memory(partial(batches_exactly, model), otherwise=False)
    by_sampler: dict[Sampler, list[int]] = defaultdict(list)  # indices of the requests drawn alike, but for their seeds
    for i, request in enumerate(requests):
        by_sampler[replace(request.sampler, seed=0)].append(i)
    for sampler, places in by_sampler.items():
        missing = dict.fromkeys(places)
        alike = [requests[i] for i in places]
        rows = _in_memory(partial(_rows, model, alike, room), otherwise=1) if together else 1
        keeps = 2 * 4 * width * rows * max(one.most for one in alike) <= p_bytes  # once per step, once per output
        drawing = _Drawing(sampler, width, keeps)
        while missing:
            rows = min(rows, len(missing))
            left = [(i, requests[i]) for i in missing]
            try:
                if together:
                    outputs = _Batch(model, drawing, left, rows, stop_tokens).outputs(enough, on_tokens)
                else:
                    outputs = _one_by_one(model, drawing, left, stop_tokens, enough, on_tokens)
                for output in outputs:
                    del missing[output.place]
                    yield output
                break
            except REFUSALS as error:
                if not is_out_of_memory(error):
                    raise
                if rows == 1:
                    raise NoRoom(
                        f"a single output does not fit into memory ({' '.join(str(error).split())}); lower its length "
                        "(max_tokens, max_prompt_length), close other programs, or take smaller models"
                    ) from None
            rows //= 2


def _in_memory(find: Callable[[], T], otherwise: T) -> T:
    """What a try of the model says, or what holds where there is no memory for it."""
    try:
        return find()
    except REFUSALS as error:
        if not is_out_of_memory(error):
            raise
        return otherwise


def _rows(model: nn.Module, requests: Sequence[OutputRequest], room: float) -> int:
    """How many outputs to generate in one batch."""
    length = max(len(one.prompt) + one.most for one in requests)
    of_a_row = max(1, prompt_caches.row_bytes(model).of(length))
    return int(max(1, min(MOST_ROWS, len(requests), _TOKENS_AT_ONCE // length, room // of_a_row)))


def _several(rows: int) -> int:
    """Of so many rows, how many have to be free before other outputs begin there."""
    return max(1, rows // _TURNOVER) if mx.default_device().type == mx.DeviceType.gpu else rows


@dataclass(eq=False)
class _Row:
    """An output in work or at its end: its random stream, its tokens, and what they were drawn from."""

    place: int
    prompt: tuple[int, ...]
    most: int
    random: RandomStream
    ended: bool = False
    tokens: list[int] = field(default_factory=list)
    p: list[mx.array] = field(default_factory=list)

    @classmethod
    def of(cls, place: int, request: OutputRequest) -> _Row:
        """The row of an output that is to begin."""
        return cls(place, request.prompt, request.most, RandomStream(request.sampler.seed))

    def take(self, token: int, stop_tokens: frozenset[int]) -> bool:
        """Append a token, unless the output has ended; whether it ends with this token."""
        if self.ended:
            return False
        self.tokens.append(token)
        self.ended = token in stop_tokens or len(self.tokens) == self.most
        return self.ended

    def finished(self) -> FinishedOutput:
        """The finished output; the row keeps its distributions no longer."""
        rows, self.p = self.p[: len(self.tokens)], []  # a batch has drawn the next one by then
        p = mx.stack(rows) if rows else None
        mx.eval(p)
        return FinishedOutput(self.place, tuple(self.tokens), p)


@dataclass(frozen=True)
class _Drawing:
    """How tokens are drawn: by `sampler`, whatever its seed, none from `width` on; `keeps` what they are drawn from."""

    sampler: Sampler
    width: int
    keeps: bool

    def tokens(self, logits: mx.array, rows: Sequence[_Row]) -> mx.array:
        """The next token of each row, (n,), from logits (n, V)."""
        if self.sampler.temperature == 0:
            return mx.argmax(logits[..., : self.width], axis=-1)
        p = sampling_probs(logits, self.sampler, self.width)
        if self.keeps:
            for i, row in enumerate(rows):
                if not row.ended:
                    row.p.append(p[i])
        per_draw = exponentials_per_draw(self.width)
        return draw_tokens(p, mx.array(np.stack([row.random.exponentials(per_draw) for row in rows])))


def _one_by_one(
    model: nn.Module,
    drawing: _Drawing,
    requests: Sequence[tuple[int, OutputRequest]],
    stop_tokens: frozenset[int],
    enough: Callable[[], bool],
    on_tokens: Callable[[int], None],
) -> Iterator[FinishedOutput]:
    """Each output by itself."""
    for place, request in requests:
        row, cache = _Row.of(place, request), make_prompt_cache(model)
        if len(request.prompt) > 1:
            model(mx.array([request.prompt[:-1]]), cache=cache)
            mx.eval([layer.state for layer in cache])
        last = request.prompt[-1]
        while not row.ended:
            if enough():
                return
            last = int(drawing.tokens(model(mx.array([[last]]), cache=cache)[:, -1], [row]).item())
            row.take(last, stop_tokens)
            on_tokens(1)
        yield row.finished()


class _LogitsAside:
    """A model that shows mlx-lm one column of its logits, and keeps those of the last position for the sampler."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.logits = mx.zeros((0, 0))  # (rows, V), of the last call

    def __call__(self, tokens: mx.array, **settings: Any) -> mx.array:
        """(rows, 1, 1) for tokens (rows, N)."""
        self.logits = self._model(tokens, **settings)[:, -1]
        return self.logits[:, None, :1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _Batch:
    """Some outputs under one sampler, `rows` of them at a time.

    Args:
        model: generates.
        drawing: how all of them are drawn.
        requests: what is missing, by place.
        rows: of one batch.
        stop_tokens: end an output.
    """

    def __init__(
        self,
        model: nn.Module,
        drawing: _Drawing,
        requests: Sequence[tuple[int, OutputRequest]],
        rows: int,
        stop_tokens: frozenset[int],
    ) -> None:
        self._model, self._drawing, self._stop_tokens = _LogitsAside(model), drawing, stop_tokens
        self._most, self._several, self._room = rows, _several(rows), KVCache.step
        if self._several == rows:  # rows leave and join together
            turns = math.ceil(len(requests) / rows)
            self._most = self._several = math.ceil(len(requests) / turns)  # so that no turn has but a few
            self._room = 1 + max(request.most for _, request in requests)  # mlx-lm is a token ahead
        self._waiting = deque(sorted(requests, key=lambda one: len(one[1].prompt)))  # little is padded
        self._rows: dict[int, _Row] = {}  # all that mlx-lm has, by its number
        self._writing: list[int] = []  # in the order of mlx-lm's rows
        self._written = 0  # tokens
        self._turns: deque[list[int]] = deque()  # the rows of each call of the sampler in this step
        self._generator = BatchGenerator(
            self._model,
            sampler=self._sample,
            completion_batch_size=rows,
            prefill_batch_size=rows,
        )

    def outputs(self, enough: Callable[[], bool], on_tokens: Callable[[int], None]) -> Iterator[FinishedOutput]:
        """Each as it is finished. Raises REFUSALS: out of memory with so many."""
        try:
            while not enough() and (self._waiting or any(not row.ended for row in self._rows.values())):
                before = self._written
                ended = self._step(enough)
                on_tokens(self._written - before)
                for row in ended:
                    yield row.finished()
        finally:
            self._generator.close()
            del self._generator  # it knows the sampler, and so this batch: the caches would stay until Python looks
            self._rows.clear()
            mx.clear_cache()

    def _step(self, enough: Callable[[], bool]) -> list[_Row]:
        """Generate one token of each row; returns the rows that end with it."""
        self._release()
        beginning = self._hand_over(enough)
        self._turns.extend(turn for turn in (self._writing, beginning) if turn)
        _, responses = self._generator.next()
        if self._turns:
            raise RuntimeError(f"mlx-lm's batch left out {len(self._turns[0])} rows")
        self._writing = self._writing + beginning
        ended = []
        for response in responses:
            row = self._rows[response.uid]
            self._written += not row.ended
            if row.take(int(response.token), self._stop_tokens):
                ended.append(row)
        return ended

    def _release(self) -> None:
        """Take the rows of ended outputs off, if they are many."""
        ended = [number for number, row in self._rows.items() if row.ended]
        if not ended or len(ended) < min(self._several, len(self._rows) / 2):
            return
        with mx.stream(self._generator.stream):
            self._generator.remove(ended)
        for number in ended:
            del self._rows[number]
            self._writing.remove(number)

    def _hand_over(self, enough: Callable[[], bool]) -> list[int]:
        """Prompts for rows that are free: several at a time, for a pass over few costs as much; `enough` ends it."""
        count = min(self._several, self._most - len(self._rows), len(self._waiting))
        if count == 0 or (count < min(self._several, len(self._waiting)) and self._rows):
            return []
        fresh = [_Row.of(*self._waiting.popleft()) for _ in range(count)]
        with mx.stream(self._generator.stream):
            prompts = [list(row.prompt) for row in fresh]
            caches = prompt_caches.read(self._model, prompts, self._room, _PROMPT_TOKENS_AT_ONCE, enough)
        if caches is None:
            return []
        last = [prompt[-1:] for prompt in prompts]
        numbers: list[int] = self._generator.insert(last, [_NEVER] * count, caches=caches)
        self._rows |= dict(zip(numbers, fresh, strict=True))
        return numbers

    def _sample(self, column: mx.array) -> mx.array:
        rows = [self._rows[number] for number in self._turns.popleft()]
        if len(rows) != column.shape[0]:
            raise RuntimeError(f"mlx-lm's batch has {column.shape[0]} rows, expected {len(rows)}")
        logits, self._model.logits = self._model.logits, column
        return self._drawing.tokens(logits, rows)
