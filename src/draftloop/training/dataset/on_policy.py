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
from dataclasses import replace

from ...decoding.batched_generation import OutputRequest, generate_batched
from ...models.pair import Pair
from .examples import Example


def sample_outputs(
    pair: Pair,
    failures: Sequence[Example],
    times: int,
    *,
    own: bool,
    seed: int,
    room: float = math.inf,
    enough: Callable[[], bool],
    on_sample: Callable[[int, int], None],
    on_tokens: Callable[[int], None] = lambda _count: None,
) -> list[Example]:
    """Continue the prompt of each failure anew, `times` times.

    Args:
        pair: its context bounds a sample, which holds tokens that both models share and ends at a stop token.
        failures: whose prompts and samplers are used; the longest of their outputs says how long a sample may be.
        times: 0 gives none.
        own: by the draft, with whatever adapter it carries, whose tokens are no labels; else by the target.
        seed: of the training.
        room: bytes for the caches of a batch.
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
    context = math.inf if pair.context is None else pair.context
    wanted = [(example, number) for number in range(times) for example in failures if example.prompt_length < context]
    requests = [
        OutputRequest(
            example.ids[: example.prompt_length],
            replace(example.sampler, seed=_seed(seed, example, number, own)),
            int(min(longest, context - example.prompt_length)),
        )
        for example, number in wanted
    ]
    # 2. They are finished in any order, and returned in theirs.
    samples: dict[int, Example] = {}
    for output in generate_batched(
        pair.draft if own else pair.target,
        requests,
        width=pair.width,
        stop_tokens=pair.stop_tokens,
        room=room,
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
