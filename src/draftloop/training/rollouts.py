"""More text on the prompts that failed: new answers of the target, or the draft's own. Knows no plan and no loss.

A failure says where the draft is weak; its one text is a small sample of what the target says there. While the target
is at hand it can be asked again, many prompts side by side, which costs it far less a token than one after the other.
The draft's own text is cheaper still: only the teacher's one pass over it is needed (on-policy distillation, arXiv
2306.13649). Both are sampled under the failure's own sampler, so that what is learned is what will be verified.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.generate import BatchGenerator

from ..errors import RunError
from ..random_state import unchanged
from ..records import Sampler
from ..speculative.transforms import sampling_log_probs
from .examples import Example

MOST_ROWS = 32
_TOKENS_AT_ONCE = 8192  # of prompt and output in the caches of one batch
_STREAM = 0x4011  # keeps this random stream apart from others of one seed


def roll_out(
    model: nn.Module,
    failures: Sequence[Example],
    times: int,
    *,
    own: bool,
    seed: int,
    width: int,
    stop_tokens: frozenset[int],
    on_text: Callable[[int, int], None],
) -> list[Example]:
    """Continue the prompt of each failure anew, `times` times.

    Args:
        model: target, or draft with whatever adapter it carries.
        failures: whose prompts and samplers are used; the longest of their outputs says how long one may be.
        times: 0 gives none.
        own: the model is the draft, and what it says is no label.
        seed: of the training.
        width: ids that target and draft share; no other is sampled.
        stop_tokens: end a text, and are its last token.
        on_text: told after every finished text how many there are and of how many; may raise to stop.

    Returns:
        Examples whose `record_id` is that of their failure and a number.
    """
    drafts = [(example, number) for number in range(times) for example in failures]
    by_sampler: dict[Sampler, list[tuple[Example, int]]] = defaultdict(list)
    for example, number in drafts:
        by_sampler[replace(example.sampler, seed=0)].append((example, number))
    found: dict[tuple[str, int], Example] = {}
    with unchanged():
        for sampler, wanted in by_sampler.items():
            mx.random.seed(seed + (_STREAM << 20))
            for (example, number), tokens in _texts(model, wanted, sampler, width, stop_tokens):
                found[example.record_id, number] = _continued(example, number, tokens, own)
                on_text(len(found), len(drafts))
    return [found[example.record_id, number] for example, number in drafts]


def to_json(rollouts: Iterable[Example]) -> list[dict[str, Any]]:
    """What `from_json` makes the same examples of."""
    return [asdict(example) for example in rollouts]


def from_json(values: Iterable[Mapping[str, Any]]) -> list[Example]:
    """The examples of a run that is gone on with. Raises RunError: damaged."""
    try:
        return [Example(**{**v, "ids": tuple(v["ids"]), "sampler": Sampler(**v["sampler"])}) for v in values]
    except (KeyError, TypeError) as error:
        raise RunError(f"the texts that this run was given are damaged ({error}); start a new training") from None


def _texts(
    model: nn.Module,
    wanted: Sequence[tuple[Example, int]],
    sampler: Sampler,
    width: int,
    stop_tokens: frozenset[int],
) -> Iterable[tuple[tuple[Example, int], list[int]]]:
    """What was wanted with the tokens that the model continued it by, as they are finished."""
    longest = max(len(example.labels) for example, _ in wanted)
    rows = _TOKENS_AT_ONCE // (longest + max(example.prompt_length for example, _ in wanted))
    generator = BatchGenerator(
        model,
        max_tokens=longest,
        stop_tokens=[[token] for token in sorted(stop_tokens)],
        sampler=lambda log_probs: mx.random.categorical(sampling_log_probs(log_probs, sampler, width)),
        completion_batch_size=max(1, min(MOST_ROWS, rows)),
        prefill_batch_size=max(1, min(MOST_ROWS // 4, rows)),
    )
    prompts = [list(example.ids[: example.prompt_length]) for example, _ in wanted]
    number = dict(zip(generator.insert(prompts), range(len(wanted)), strict=True))
    texts: list[list[int]] = [[] for _ in wanted]
    try:
        while responses := generator.next_generated():
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
