"""More text on the prompts that failed: new answers of the target, or the draft's own. Knows no plan and no loss.

A failure says where the draft is weak; its one text is a small sample of what the target says there. While the target
is at hand it can be asked again, many prompts side by side, which costs it far less a token than one after the other.
The draft's own text is cheaper still: only the teacher's one pass over it is needed (on-policy distillation, arXiv
2306.13649). Both are sampled under the failure's own sampler, so that what is learned is what will be verified.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache

from ...errors import RunError, TrainingFailed
from ...memory import REFUSALS, is_out_of_memory
from ...random_state import unchanged
from ...records import Sampler
from ...speculative.transforms import sampling_log_probs
from .examples import Example

MOST_ROWS = 32
_TOKENS_AT_ONCE = 8192  # of prompt and output in the caches of one batch
_STREAM = 0x4011  # keeps this random stream apart from others of one seed


@dataclass(frozen=True)
class Limits:
    """What bounds a text.

    Attributes:
        width: ids that target and draft share; no other is sampled.
        stop_tokens: end a text, and are its last token.
        context: tokens that both models can read; None is no bound.
        room: bytes for the caches of texts written side by side.
    """

    width: int
    stop_tokens: frozenset[int]
    context: int | None = None
    room: float = math.inf


def roll_out(
    model: nn.Module,
    failures: Sequence[Example],
    times: int,
    *,
    own: bool,
    seed: int,
    limits: Limits,
    enough: Callable[[], bool],
    on_text: Callable[[int, int], None],
) -> list[Example]:
    """Continue the prompt of each failure anew, `times` times.

    Args:
        model: target, or draft with whatever adapter it carries.
        failures: whose prompts and samplers are used; the longest of their outputs says how long one may be.
        times: 0 gives none.
        own: the model is the draft, and what it says is no label.
        seed: of the training.
        limits: of each text.
        enough: asked before every token of the texts in work, which are dropped where it is so; may raise to stop.
        on_text: told after every finished text how many there are and of how many.

    Returns:
        Examples whose `record_id` is that of their failure and a number. A prompt that leaves no room for an answer has
        none.

    Raises:
        TrainingFailed: not even one text at a time fits into memory.
    """
    drafts = [(example, number) for number in range(times) for example in failures if _longest(example, limits)]
    by_sampler: dict[Sampler, list[_Wanted]] = defaultdict(list)
    for example, number in drafts:
        by_sampler[replace(example.sampler, seed=0)].append((example, number))
    found: dict[tuple[str, int], Example] = {}
    longest = max((len(example.labels) for example in failures), default=0)
    with unchanged():
        for sampler, wanted in by_sampler.items():
            mx.random.seed(seed + (_STREAM << 20))
            for (example, number), tokens in _texts(model, wanted, longest, sampler, limits, enough):
                found[example.record_id, number] = _continued(example, number, tokens, own)
                on_text(len(found), len(drafts))
    return [found[e.record_id, number] for e, number in drafts if (e.record_id, number) in found]


def to_json(rollouts: Iterable[Example]) -> list[dict[str, Any]]:
    """What `from_json` makes the same examples of."""
    return [asdict(example) for example in rollouts]


def from_json(values: Iterable[Mapping[str, Any]]) -> list[Example]:
    """The examples of a run that is gone on with. Raises RunError: damaged."""
    try:
        return [Example(**{**v, "ids": tuple(v["ids"]), "sampler": Sampler(**v["sampler"])}) for v in values]
    except (KeyError, TypeError) as error:
        raise RunError(f"the texts that this run was given are damaged ({error}); start a new training") from None


_Wanted = tuple[Example, int]


def _longest(example: Example, limits: Limits) -> int | float:
    """The most tokens that may follow its prompt."""
    return math.inf if limits.context is None else max(0, limits.context - example.prompt_length)


def _texts(
    model: nn.Module,
    wanted: Sequence[_Wanted],
    longest: int,
    sampler: Sampler,
    limits: Limits,
    enough: Callable[[], bool],
) -> Iterator[tuple[_Wanted, list[int]]]:
    """What was wanted with the tokens that it was continued by, as they are finished.

    Where memory is refused, what is missing is written in batches of half the size.
    """
    missing = dict.fromkeys(wanted)
    rows = _rows(model, longest + max(example.prompt_length for example, _ in wanted), limits.room)
    while missing:
        try:
            for one, tokens in _batched(model, list(missing), rows, longest, sampler, limits, enough):
                del missing[one]
                yield one, tokens
            return
        except REFUSALS as error:
            if not is_out_of_memory(error):
                raise
            if rows == 1:
                raise TrainingFailed(
                    f"a new text alone does not fit into memory ({' '.join(str(error).split())}); lower "
                    "data.max_output_length or data.max_prompt_length, or set training.answers and "
                    "training.proposals to 0"
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
    wanted: Sequence[_Wanted],
    rows: int,
    longest: int,
    sampler: Sampler,
    limits: Limits,
    enough: Callable[[], bool],
) -> Iterator[tuple[_Wanted, list[int]]]:
    """What was wanted and its tokens, `rows` of them side by side. Raises REFUSALS: no memory for so many."""
    generator = BatchGenerator(
        model,
        stop_tokens=[[token] for token in sorted(limits.stop_tokens)],
        sampler=lambda log_probs: mx.random.categorical(sampling_log_probs(log_probs, sampler, limits.width)),
        completion_batch_size=rows,
        prefill_batch_size=max(1, rows // 4),
    )
    prompts = [list(example.ids[: example.prompt_length]) for example, _ in wanted]
    most = [int(min(longest, _longest(example, limits))) for example, _ in wanted]
    number = dict(zip(generator.insert(prompts, most), range(len(wanted)), strict=True))
    texts: list[list[int]] = [[] for _ in wanted]
    try:
        while not enough() and (responses := generator.next_generated()):
            for response in responses:
                text = texts[number[response.uid]]
                text.append(int(response.token))
                if response.finish_reason is not None:
                    yield wanted[number[response.uid]], text
    finally:
        generator.close()
        mx.clear_cache()


def _continued(example: Example, number: int, tokens: Sequence[int], own: bool) -> Example:
    ids = example.ids[: example.prompt_length] + tuple(tokens)
    record_id = f"{example.record_id}/{'own' if own else 'again'}{number}"
    return replace(example, record_id=record_id, ids=ids, blob=None, own=own)
