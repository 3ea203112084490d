"""New samples on the prompts that failed: the target's (target samples), or the draft's own (on-policy samples).

A failure says where the draft is weak; its one output is a small sample of what the target says there. While the target
is loaded it can answer again, many prompts in a batch, which costs far less a token than one after the other. The
draft's own samples are cheaper still: only the teacher's one pass over them is needed (on-policy distillation, arXiv
2306.13649). Both are sampled under the failure's own sampler, so that what is learned is what will be verified. Knows
no plan and no loss.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mlx import nn

from ...decoding.batched_generation import OutputRequest, generate_batched
from .examples import Example


@dataclass(frozen=True)
class OutputLimits:
    """What bounds a sample.

    Attributes:
        width: tokens that target and draft share; no other is sampled.
        stop_tokens: end a sample, and are its last token.
        context: tokens that both models can read; None is no bound.
        room: bytes for the caches of a batch.
    """

    width: int
    stop_tokens: frozenset[int]
    context: int | None = None
    room: float = math.inf

    def longest_after(self, prompt_length: int) -> float:
        """The most tokens that may follow a prompt of so many; inf where nothing bounds them."""
        return math.inf if self.context is None else max(0, self.context - prompt_length)


def sample_outputs(
    model: nn.Module,
    failures: Sequence[Example],
    times: int,
    *,
    own: bool,
    seed: int,
    limits: OutputLimits,
    enough: Callable[[], bool],
    on_sample: Callable[[int, int], None],
    on_tokens: Callable[[int], None] = lambda _count: None,
) -> list[Example]:
    """Continue the prompt of each failure anew, `times` times.

    Args:
        model: target, or draft with whatever adapter it carries.
        failures: whose prompts and samplers are used; the longest of their outputs says how long a sample may be.
        times: 0 gives none.
        own: the model is the draft, and its tokens are no labels.
        seed: of the training.
        limits: of each sample.
        enough: asked before every token of the samples in work, which are dropped where it is so; may raise to stop.
        on_sample: told after every finished sample how many there are and of how many.
        on_tokens: told after every step how many tokens were generated in it.

    Returns:
        Examples whose `record_id` is that of their failure and a number. A prompt that leaves no room for an output has
        none.

    Raises:
        NoRoom: not even one sample at a time fits into memory.
    """
    # 1. One request for each failure and number, with a seed that does not depend on what it is generated beside.
    longest = max((len(example.labels) for example in failures), default=0)
    wanted = [
        (example, number)
        for number in range(times)
        for example in failures
        if limits.longest_after(example.prompt_length)
    ]
    requests = [
        OutputRequest(
            example.ids[: example.prompt_length],
            replace(example.sampler, seed=_seed(seed, example, number, own)),
            int(min(longest, limits.longest_after(example.prompt_length))),
        )
        for example, number in wanted
    ]
    # 2. They are finished in any order, and returned in theirs.
    samples: dict[int, Example] = {}
    for output in generate_batched(
        model,
        requests,
        width=limits.width,
        stop_tokens=limits.stop_tokens,
        room=limits.room,
        enough=enough,
        on_tokens=on_tokens,
    ):
        example, number = wanted[output.place]
        samples[output.place] = replace(
            example,
            record_id=f"{example.record_id}/{'own' if own else 'again'}{number}",
            ids=example.ids[: example.prompt_length] + tuple(output.tokens),
            blob=None,
            own=own,
        )
        on_sample(len(samples), len(wanted))
    return [samples[i] for i in sorted(samples)]


def _seed(seed: int, failure: Example, number: int, own: bool) -> int:
    """Of one sample, 0 .. 2**63 - 1: the same whatever it is generated beside, another after another failure."""
    digest = hashlib.sha256(f"{seed}:{failure.ids}:{number}:{own}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
