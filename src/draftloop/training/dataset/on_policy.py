"""More text on the prompts that failed: new answers of the target, or the draft's own. Knows no plan and no loss.

A failure says where the draft is weak; its one text is a small sample of what the target says there. While the target
is at hand it can be asked again, many prompts side by side, which costs it far less a token than one after the other.
The draft's own text is cheaper still: only the teacher's one pass over it is needed (on-policy distillation, arXiv
2306.13649). Both are sampled under the failure's own sampler, so that what is learned is what will be verified.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mlx import nn

from ...data.records import Sampler
from ...decoding.batched_generation import OutputRequest, generate_batched
from ...errors import RunError
from .examples import Example


@dataclass(frozen=True)
class OutputLimits:
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


def sample_outputs(
    model: nn.Module,
    failures: Sequence[Example],
    times: int,
    *,
    own: bool,
    seed: int,
    limits: OutputLimits,
    enough: Callable[[], bool],
    on_text: Callable[[int, int], None],
    on_tokens: Callable[[int], None] = lambda _count: None,
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
        on_tokens: told after every step how many tokens were written in it.

    Returns:
        Examples whose `record_id` is that of their failure and a number. A prompt that leaves no room for an answer has
        none.

    Raises:
        NoRoom: not even one text at a time fits into memory.
    """
    drafts = [(example, number) for number in range(times) for example in failures if _longest(example, limits)]
    longest = max((len(example.labels) for example in failures), default=0)
    wanted = [
        OutputRequest(
            example.ids[: example.prompt_length],
            replace(example.sampler, seed=_seed(seed, example, number, own)),
            int(min(longest, _longest(example, limits))),
        )
        for example, number in drafts
    ]
    found: dict[int, Example] = {}
    for text in generate_batched(
        model,
        wanted,
        width=limits.width,
        stop_tokens=limits.stop_tokens,
        room=limits.room,
        enough=enough,
        on_tokens=on_tokens,
    ):
        found[text.place] = _continued(*drafts[text.place], text.tokens, own)
        on_text(len(found), len(drafts))
    return [found[i] for i in sorted(found)]


def to_json(rollouts: Iterable[Example]) -> list[dict[str, Any]]:
    """What `from_json` makes the same examples of."""
    return [asdict(example) for example in rollouts]


def from_json(values: Iterable[Mapping[str, Any]]) -> list[Example]:
    """The examples of a run that is gone on with. Raises RunError: damaged."""
    try:
        return [Example(**{**v, "ids": tuple(v["ids"]), "sampler": Sampler(**v["sampler"])}) for v in values]
    except (KeyError, TypeError) as error:
        raise RunError(f"the texts that this run was given are damaged ({error}); start a new training") from None


def _longest(example: Example, limits: OutputLimits) -> int | float:
    """The most tokens that may follow its prompt."""
    return math.inf if limits.context is None else max(0, limits.context - example.prompt_length)


def _seed(seed: int, failure: Example, number: int, own: bool) -> int:
    """Of one text, 0 .. 2**63 - 1: the same whatever texts it is written beside, another after another failure."""
    digest = hashlib.sha256(f"{seed}:{failure.ids}:{number}:{own}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _continued(example: Example, number: int, tokens: Sequence[int], own: bool) -> Example:
    ids = example.ids[: example.prompt_length] + tuple(tokens)
    record_id = f"{example.record_id}/{'own' if own else 'again'}{number}"
    return replace(example, record_id=record_id, ids=ids, blob=None, own=own)
