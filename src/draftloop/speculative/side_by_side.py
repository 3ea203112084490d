"""Texts of one model, many at a time, through mlx-lm's batches. Knows no draft, record or training.

A model reads its weights once for all texts in work, so many side by side cost little more than one. Every text draws
from uniforms of its own: which others it is written beside, and in what order they are asked for, changes nothing in it
but for the last bits of a larger matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache

from ..errors import DraftloopError
from ..memory import REFUSALS, is_out_of_memory
from ..records import Sampler
from .choosing import Greedy, chooser_of

MOST_ROWS = 64
_TOKENS_AT_ONCE = 16_384  # of prompt and output in the caches of one batch
_MORE = 4  # rows a new batch of prompts takes of those in work


class NoRoom(DraftloopError):
    """Not even one text at a time fits into memory."""


@dataclass(frozen=True)
class Wanted:
    """A text to write.

    Attributes:
        prompt: ids, at least one.
        sampler: with the seed of this very text.
        most: tokens, at least one.
    """

    prompt: tuple[int, ...]
    sampler: Sampler
    most: int


def write(
    model: nn.Module,
    wanted: Sequence[Wanted],
    *,
    width: int,
    stop_tokens: frozenset[int],
    room: float = math.inf,
    enough: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, list[int]]]:
    """Write all of them.

    Args:
        model: whose texts.
        wanted: in any order.
        width: no id from there on is sampled.
        stop_tokens: end a text, and are its last token.
        room: bytes for the caches of texts side by side. Where memory is refused all the same, what is missing is
            written in batches of half the size.
        enough: asked before every token of those in work, which are dropped where it is so; may raise to stop.

    Yields:
        The place in `wanted` and the tokens of each text, as they are finished.

    Raises:
        NoRoom: memory is refused for a single one.
    """
    missing = dict.fromkeys(range(len(wanted)))
    rows = _rows(model, max((len(one.prompt) + one.most for one in wanted), default=1), room)
    while missing:
        try:
            for i, tokens in _batched(model, wanted, list(missing), rows, width, stop_tokens, enough):
                del missing[i]
                yield i, tokens
            return
        except REFUSALS as error:
            if not is_out_of_memory(error):
                raise
            if rows == 1:
                raise NoRoom(
                    f"a text alone does not fit into memory ({' '.join(str(error).split())}); lower its length "
                    "(max_tokens, max_prompt_length), close other programs, or take smaller models"
                ) from None
        rows //= 2


def _rows(model: nn.Module, length: int, room: float) -> int:
    """Texts of so many tokens at most to write side by side."""
    cache = make_prompt_cache(model)
    mx.eval(model(mx.array([[0]]), cache=cache))
    held = [values for _, values in tree_flatten([layer.state for layer in cache]) if isinstance(values, mx.array)]
    a_token = sum(values.nbytes / values.shape[-2] for values in held if values.ndim > 1)  # (…, tokens, head's width)
    return int(max(1, min(MOST_ROWS, _TOKENS_AT_ONCE // length, room // (length * max(1, a_token)))))


def _batched(
    model: nn.Module,
    wanted: Sequence[Wanted],
    places: Sequence[int],
    rows: int,
    width: int,
    stop_tokens: frozenset[int],
    enough: Callable[[], bool],
) -> Iterator[tuple[int, list[int]]]:
    """Those at `places`, `rows` of them side by side. Raises REFUSALS: no memory for so many."""
    generator = BatchGenerator(
        model,
        stop_tokens=[[token] for token in sorted(stop_tokens)],
        completion_batch_size=rows,
        prefill_batch_size=max(1, rows // _MORE),
    )
    some = [wanted[i] for i in places]
    greedy = Greedy(width).following  # one for all: mlx-lm then asks once for the whole batch
    numbers = generator.insert(
        [list(one.prompt) for one in some],
        [one.most for one in some],
        samplers=[greedy if one.sampler.temperature == 0 else chooser_of(one.sampler, width).following for one in some],
    )
    place = dict(zip(numbers, places, strict=True))
    texts: dict[int, list[int]] = {i: [] for i in places}
    try:
        while not enough() and (responses := generator.next_generated()):
            for response in responses:
                i = place[response.uid]
                texts[i].append(int(response.token))
                if response.finish_reason is not None:
                    yield i, texts.pop(i)
    finally:
        generator.close()
        mx.clear_cache()
