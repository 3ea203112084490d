"""Texts of one model, many at a time, through mlx-lm's batches. Knows no draft, record or training.

A model reads its weights once for all texts in work, so many side by side cost little more than one. Every text draws
from uniforms of its own: which others it is written beside, and in what order they are asked for, changes nothing in it
but for the last bits of a larger matrix product.

mlx-lm asks one sampler for the whole batch at once, and does not tell it which texts the rows are. `_Batch` knows: rows
stay in the order in which they began. What mlx-lm shows the sampler it has normalised before, and nobody needs that: so
`_Aside` hands it one column, and keeps the logits for the sampler.

Whenever a row leaves or joins, mlx-lm copies the caches of all others, which on a CPU takes as long as ten steps. So
rows whose text is at its end stay until they are many, and are passed over.

Texts of a model whose caches mlx-lm cannot put side by side are written one after the other.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import KVCache, make_prompt_cache
from numpy.typing import NDArray

from ..data.records import Sampler
from ..errors import DraftloopError
from ..runtime.memory import REFUSALS, is_out_of_memory
from . import prompt_caches
from .acceptance_rules import draw_tokens
from .round_sampler import Uniforms
from .sampling_filters import sampling_probs

MOST_ROWS = 128
_TOKENS_AT_ONCE = 32_768  # of prompt and output in the caches of one batch
_PROMPT_TOKENS_AT_ONCE = 8_192  # in one pass: what it makes on the way takes memory too
_TURNOVER = 4  # on a GPU, of so many rows one has to be free before other texts are begun; on a CPU all have to
_NEVER = 1 << 30  # tokens


class NoRoom(DraftloopError):
    """Not even one text at a time fits into memory."""


@dataclass(frozen=True)
class OutputRequest:
    """A text to write.

    Attributes:
        prompt: ids, at least one.
        sampler: with the seed of this very text.
        most: tokens, at least one.
    """

    prompt: tuple[int, ...]
    sampler: Sampler
    most: int


@dataclass(frozen=True)
class FinishedOutput:
    """A finished text.

    Attributes:
        place: of what was wanted.
        tokens: N of them.
        p: (N, width) float32, what each was drawn from, evaluated; None where that was not kept.
    """

    place: int
    tokens: tuple[int, ...]
    p: mx.array | None


def generate_batched(
    model: nn.Module,
    wanted: Sequence[OutputRequest],
    *,
    width: int,
    stop_tokens: frozenset[int],
    room: float = math.inf,
    enough: Callable[[], bool] = lambda: False,
    p_bytes: float = 0,
    on_tokens: Callable[[int], None] = lambda _count: None,
) -> Iterator[FinishedOutput]:
    """Write all of them.

    Args:
        model: whose texts.
        wanted: in any order.
        width: no id from there on is sampled.
        stop_tokens: end a text, and are its last token.
        room: bytes for the caches of texts side by side. Where memory is refused all the same, what is missing is
            written in batches of half the size.
        enough: asked before every token of those in work, which are dropped where it is so; may raise to stop.
        p_bytes: for the distributions that tokens are drawn from: they are kept where those of all rows fit.
        on_tokens: told after every step how many tokens were written in it. Those of texts that memory was refused for
            come again.

    Yields:
        Each text as it is finished.

    Raises:
        NoRoom: memory is refused for a single one.
    """
    together = all(hasattr(layer, "merge") for layer in make_prompt_cache(model))  # mlx-lm's own test
    for sampler, places in _by_sampler(wanted).items():
        missing = dict.fromkeys(places)
        some = [wanted[i] for i in places]
        rows = _rows(model, some, room) if together else 1
        keeps = 2 * 4 * width * rows * max(one.most for one in some) <= p_bytes  # once a step, once more a text
        drawing = _Drawing(sampler, width, keeps)
        while missing:
            rows = min(rows, len(missing))
            left = [(i, wanted[i]) for i in missing]
            try:
                if together:
                    texts = _Batch(model, drawing, left, rows, stop_tokens).texts(enough, on_tokens)
                else:
                    texts = _one_by_one(model, drawing, left, stop_tokens, enough, on_tokens)
                for found in texts:
                    del missing[found.place]
                    yield found
                break
            except REFUSALS as error:
                if not is_out_of_memory(error):
                    raise
                if rows == 1:
                    raise NoRoom(
                        f"a text alone does not fit into memory ({' '.join(str(error).split())}); lower its length "
                        "(max_tokens, max_prompt_length), close other programs, or take smaller models"
                    ) from None
            rows //= 2


def _by_sampler(wanted: Sequence[OutputRequest]) -> dict[Sampler, list[int]]:
    """Places of the texts that are drawn alike, but for their seeds."""
    found: dict[Sampler, list[int]] = defaultdict(list)
    for i, one in enumerate(wanted):
        found[replace(one.sampler, seed=0)].append(i)
    return found


def _rows(model: nn.Module, wanted: Sequence[OutputRequest], room: float) -> int:
    """How many of them to write side by side."""
    cache = make_prompt_cache(model)
    mx.eval(model(mx.array([[0]]), cache=cache))
    held = [values for _, values in tree_flatten([layer.state for layer in cache]) if isinstance(values, mx.array)]
    a_token = sum(values.nbytes / values.shape[-2] for values in held if values.ndim > 1)  # (…, tokens, head's width)
    length, prompt = max(len(one.prompt) + one.most for one in wanted), max(len(one.prompt) for one in wanted)
    fitting = [_TOKENS_AT_ONCE // length, room // (length * max(1, a_token))]
    if not prompt_caches.are_plain(model):  # mlx-lm reads them, all rows in one pass
        fitting.append(_PROMPT_TOKENS_AT_ONCE // prompt)
    return int(max(1, min(MOST_ROWS, len(wanted), *fitting)))


def _several(rows: int) -> int:
    """Of so many rows, how many have to be free before other texts are begun there."""
    return max(1, rows // _TURNOVER) if mx.default_device().type == mx.DeviceType.gpu else rows


@dataclass(eq=False)
class _Row:
    """A text in work or at its end: its uniforms, how many are used, its tokens, and what they were drawn from."""

    place: int
    prompt: tuple[int, ...]
    most: int
    uniforms: NDArray[np.float32]
    ended: bool = False
    tokens: list[int] = field(default_factory=list)
    p: list[mx.array] = field(default_factory=list)
    _drawn: int = 0

    @classmethod
    def of(cls, place: int, wanted: OutputRequest) -> _Row:
        """One that is to begin."""
        return cls(place, wanted.prompt, wanted.most, Uniforms(wanted.sampler.seed).on_host(wanted.most))

    def uniform(self) -> float:
        """The next one; any where no more is drawn from."""
        self._drawn += 1
        return float(self.uniforms[self._drawn - 1]) if self._drawn <= self.most else 0.0

    def take(self, token: int, stop_tokens: frozenset[int]) -> bool:
        """Take in a token, if the text is not at its end; whether it is now, and was not."""
        if self.ended:
            return False
        self.tokens.append(token)
        self.ended = token in stop_tokens or len(self.tokens) == self.most
        return self.ended

    def written(self) -> FinishedOutput:
        """The finished text; what it was drawn from is kept no longer."""
        p, self.p = self.p[: len(self.tokens)], []  # a batch has drawn the next one by then
        found = mx.stack(p) if p else None
        mx.eval(found)
        return FinishedOutput(self.place, tuple(self.tokens), found)


@dataclass(frozen=True)
class _Drawing:
    """How tokens are drawn: by `sampler`, whatever its seed, none from `width` on; `keeps` what they are drawn from."""

    sampler: Sampler
    width: int
    keeps: bool

    def tokens(self, logits: mx.array, rows: Sequence[_Row]) -> mx.array:
        """The next id of each row, (n,), from logits (n, V)."""
        if self.sampler.temperature == 0:
            return mx.argmax(logits[..., : self.width], axis=-1)
        p = sampling_probs(logits, self.sampler, self.width)
        if self.keeps:
            for i, row in enumerate(rows):
                if not row.ended:
                    row.p.append(p[i])
        return draw_tokens(p, mx.array([row.uniform() for row in rows]))


def _one_by_one(
    model: nn.Module,
    drawing: _Drawing,
    wanted: Sequence[tuple[int, OutputRequest]],
    stop_tokens: frozenset[int],
    enough: Callable[[], bool],
    on_tokens: Callable[[int], None],
) -> Iterator[FinishedOutput]:
    """Each text by itself."""
    for place, one in wanted:
        row, cache = _Row.of(place, one), make_prompt_cache(model)
        if len(one.prompt) > 1:
            model(mx.array([one.prompt[:-1]]), cache=cache)
            mx.eval([layer.state for layer in cache])
        last = one.prompt[-1]
        while not row.ended:
            if enough():
                return
            last = int(drawing.tokens(model(mx.array([[last]]), cache=cache)[:, -1], [row]).item())
            row.take(last, stop_tokens)
            on_tokens(1)
        yield row.written()


class _Aside:
    """A model that shows mlx-lm one column of its logits, and keeps those of the last position for whoever draws."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.logits = mx.zeros((0, 0))  # (rows, V), of the last call

    def __call__(self, ids: mx.array, **settings: Any) -> mx.array:
        """(rows, 1, 1) for ids (rows, N)."""
        self.logits = self._model(ids, **settings)[:, -1]
        return self.logits[:, None, :1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _Batch:
    """Some texts under one sampler, `rows` of them at a time.

    Args:
        model: whose texts.
        drawing: of all of them.
        wanted: what is missing, by place.
        rows: side by side.
        stop_tokens: end a text.
    """

    def __init__(
        self,
        model: nn.Module,
        drawing: _Drawing,
        wanted: Sequence[tuple[int, OutputRequest]],
        rows: int,
        stop_tokens: frozenset[int],
    ) -> None:
        self._model, self._drawing, self._stop_tokens = _Aside(model), drawing, stop_tokens
        self._most, self._several, self._room = rows, _several(rows), KVCache.step
        if self._several == rows:  # rows leave and join together
            turns = math.ceil(len(wanted) / rows)
            self._most = self._several = math.ceil(len(wanted) / turns)  # so that no turn has but a few
            self._room = 1 + max(one.most for _, one in wanted)  # mlx-lm is a token ahead of what it hands out
        self._plain = prompt_caches.are_plain(model)
        self._waiting = deque(sorted(wanted, key=lambda one: len(one[1].prompt)))  # little is padded
        self._rows: dict[int, _Row] = {}  # all that mlx-lm has, by its number
        self._reading: list[int] = []  # have read their prompts but for the last id, and begin in the next step
        self._writing: list[int] = []  # in the order of mlx-lm's rows
        self._written = 0  # tokens
        self._turns: deque[list[int]] = deque()  # whom the sampler is asked for, call by call, in the step in work
        self._generator = BatchGenerator(
            self._model,
            sampler=self._sample,
            completion_batch_size=rows,
            prefill_batch_size=rows,
            prefill_step_size=max(len(one.prompt) for _, one in wanted),  # those handed over together begin together
        )

    def texts(self, enough: Callable[[], bool], on_tokens: Callable[[int], None]) -> Iterator[FinishedOutput]:
        """Each as it is finished. Raises REFUSALS: no memory for so many."""
        try:
            while not enough() and (self._waiting or self._in_work()):
                before = self._written
                ended = self._step(enough)
                on_tokens(self._written - before)
                for row in ended:
                    yield row.written()
        finally:
            self._generator.close()
            del self._generator  # it knows the sampler, and so this batch: the caches would stay until Python looks
            self._rows.clear()
            mx.clear_cache()

    def _step(self, enough: Callable[[], bool]) -> list[_Row]:
        """One token of each; gives the texts that it ends."""
        self._release()
        beginning = self._reading
        fresh = self._hand_over(enough)
        at_once = [number for number in fresh if self._plain or len(self._rows[number].prompt) == 1]
        beginning = beginning + at_once
        self._reading = [number for number in fresh if number not in at_once]
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

    def _in_work(self) -> bool:
        return any(not row.ended for row in self._rows.values())

    def _release(self) -> None:
        """Take the rows of ended texts off, if they are many."""
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
        some = [_Row.of(*self._waiting.popleft()) for _ in range(count)]
        prompts, caches = [list(row.prompt) for row in some], None
        if self._plain:
            with mx.stream(self._generator.stream):
                caches = prompt_caches.read(self._model, prompts, self._room, _PROMPT_TOKENS_AT_ONCE, enough)
            if caches is None:
                return []
            prompts = [prompt[-1:] for prompt in prompts]
        numbers: list[int] = self._generator.insert(prompts, [_NEVER] * count, caches=caches)
        self._rows |= dict(zip(numbers, some, strict=True))
        return numbers

    def _sample(self, column: mx.array) -> mx.array:
        rows = [self._rows[number] for number in self._turns.popleft()]
        if len(rows) != column.shape[0]:
            raise RuntimeError(f"mlx-lm's batch has {column.shape[0]} rows, expected {len(rows)}")
        logits, self._model.logits = self._model.logits, column
        return self._drawing.tokens(logits, rows)
