"""`make_record` makes the record of a generation, where each rejected token becomes a disagreement. Runs no model.

A disagreement records a rejection: it makes the record a failure. Training learns from all output tokens of failures.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from ..data.records import Disagreement, Record
from ..decoding.decoder import Settings
from ..decoding.generation import Generation
from ..models.pair import Pair
from ..prompts.prompt import Prompt
from ..store.json_values import without_surrogates


def make_record(
    pair: Pair,
    prompt: Prompt,
    tokens: Sequence[int],
    generation: Generation,
    settings: Settings,
    run_seed: int,
    source: str,
    template_args: Mapping[str, Any],
) -> Record:
    """The record of a generation. The log decides on its split, and on the place of its blob (`FailureLog.extend`).

    Args:
        pair: the one that made it.
        prompt: what was given to it.
        tokens: of the prompt.
        generation: what was drafted, rejected and emitted.
        settings: of the decoding; `sampler.seed` is that of this very generation.
        run_seed: the seed of the run, from which that one follows.
        source: where the prompt comes from.
        template_args: what the chat template was given beside it.
    """
    disagreements = [
        Disagreement(
            position=rejected.position,
            draft_token=rejected.draft_token,
            target_token=generation.output[rejected.position],
            draft_logp=_mass(rejected.log_p),
            draft_logq=_mass(rejected.log_q),
            target_logp=_mass(generation.log_p[rejected.position]),
            target_logq=_mass(generation.log_q[rejected.position]),
        )
        for rejected in generation.rejections
    ]
    return Record(
        id=_content_id(pair, tokens, generation.output, settings, source),
        prompt=prompt.text,
        prompt_tokens=tuple(tokens),
        draft_output=generation.draft_output,
        target_output=generation.output,
        disagreements=tuple(disagreements),
        sampler=settings.sampler,
        rule=settings.rule,
        num_draft_tokens=settings.num_draft_tokens,
        rounds=generation.rounds,
        log_p=tuple(_mass(value) for value in generation.log_p),
        log_q=tuple(_mass(value) for value in generation.log_q),
        finish=generation.finish,
        pair=pair.identity,
        adapter=pair.adapter,
        split="train",
        source=source,
        time=time.time(),
        run_seed=run_seed,
        messages=None if prompt.messages is None else tuple(without_surrogates(prompt.messages)),
        tools=None if prompt.tools is None else tuple(without_surrogates(prompt.tools)),
        chat_template_args=without_surrogates(dict(template_args)) or None,
        simulated=generation.simulated,
    )


def _mass(log_probability: float) -> float | None:
    """A log-probability as a record keeps it: None where there is no mass."""
    return None if log_probability == -math.inf else log_probability


def _content_id(pair: Pair, tokens: Sequence[int], output: Sequence[int], decoding: Settings, source: str) -> str:
    """32 hex digits of what was generated and how: a repeated run has the same ids, and all draws by id repeat."""
    # teacher_top_k and keep_bonus_draws change nothing in what was generated, so they are no part of this.
    how = (astuple(decoding.sampler), decoding.rule, decoding.num_draft_tokens)
    lengths = decoding.max_tokens, decoding.prefill_step_size
    content = [list(tokens), list(output), (*how, *lengths), astuple(pair.identity), pair.adapter, source]
    return hashlib.sha256(repr(content).encode("utf-8", "surrogatepass")).hexdigest()[:32]
