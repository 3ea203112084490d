"""One finished text and how speculation went along it, and the record that is made of that. Knows no model."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from ..data.records import Disagreement, Record
from ..data.teacher_top_k import TopK, concatenate_top_k
from ..decoding.decoder import Finish, Round, Settings, count_rounds
from ..decoding.round_sampler import BonusDraw
from ..models.pair import Pair
from ..prompts.prompt import Prompt
from ..store.json_values import without_surrogates


@dataclass(frozen=True)
class RejectedToken:
    """A proposal that was not kept, with log p and log q of it; -inf where there is no mass."""

    position: int
    draft_token: int
    log_p: float
    log_q: float


@dataclass(frozen=True)
class Generation:
    """What a record needs to know of a text of N tokens; a log-probability is -inf where there is no mass.

    Attributes:
        output: what the target emitted.
        draft_output: what the draft proposed at each position, or would have where it had no turn.
        log_p: of each emitted token under the target.
        log_q: likewise under the draft.
        rounds: (drafted, accepted) of each, proposals past the end not counted.
        refused: one of every round that did not keep all of its proposals, in order.
        finish: what ended it.
        rows: the target's likeliest ids at every position; None where they were not asked for.
    """

    output: tuple[int, ...]
    draft_output: tuple[int, ...]
    log_p: tuple[float, ...]
    log_q: tuple[float, ...]
    rounds: tuple[tuple[int, int], ...]
    refused: tuple[RejectedToken, ...]
    finish: Finish
    rows: TopK | None = None

    @classmethod
    def of_rounds(cls, rounds: Sequence[Round], bonus_draws: Mapping[int, BonusDraw], finish: Finish) -> Generation:
        """What a live decoding was; `bonus_draws` by position, one for every bonus token."""
        drafted: list[int] = []
        log_p: list[float] = []
        log_q: list[float] = []
        refused: list[RejectedToken] = []
        for found in rounds:
            for offset, draw in enumerate(found.draws):
                drafted.append(draw.draft_token)
                log_p.append(draw.token_log_p)
                log_q.append(draw.token_log_q)
                if offset >= found.accepted:
                    where = found.start + offset
                    refused.append(RejectedToken(where, draw.draft_token, draw.draft_log_p, draw.draft_log_q))
            if found.bonus_log_p is not None:
                bonus = bonus_draws[found.start + len(found.draws)]
                drafted.append(bonus.draft_token)
                log_p.append(found.bonus_log_p)
                log_q.append(bonus.token_log_q)
        output = tuple(token for found in rounds for token in found.tokens)
        # Rows past a rejection are left out: the text went on without what was proposed there (decisions: learning).
        rows = [found.target_rows[: len(found.tokens)] for found in rounds if found.target_rows is not None]
        return cls(
            output=output,
            draft_output=tuple(drafted),
            log_p=tuple(log_p),
            log_q=tuple(log_q),
            rounds=count_rounds(rounds, len(output)),
            refused=tuple(refused),
            finish=finish,
            rows=concatenate_top_k(rows) if rows else None,
        )


def make_record(
    pair: Pair,
    prompt: Prompt,
    ids: Sequence[int],
    found: Generation,
    settings: Settings,
    run_seed: int,
    source: str,
    template_args: Mapping[str, Any],
) -> Record:
    """The record of a generation; its split is for the log to decide, its blob for whoever stores one.

    Args:
        pair: that made it.
        prompt: that was given.
        ids: of the prompt.
        found: what happened.
        settings: of the decoding; `sampler.seed` is that of this very text.
        run_seed: from which that one follows.
        source: where the prompt comes from.
        template_args: what the chat template was given beside it.
    """
    return Record(
        id=_content_id(pair, ids, found.output, settings, source),
        prompt=prompt.text,
        prompt_tokens=tuple(ids),
        draft_output=found.draft_output,
        target_output=found.output,
        disagreements=tuple(_disagreement(found, one) for one in found.refused),
        sampler=settings.sampler,
        rule=settings.rule,
        num_draft_tokens=settings.num_draft_tokens,
        rounds=found.rounds,
        log_p=tuple(_mass(value) for value in found.log_p),
        log_q=tuple(_mass(value) for value in found.log_q),
        finish=found.finish,
        pair=pair.identity,
        adapter=pair.adapter,
        split="train",
        source=source,
        time=time.time(),
        run_seed=run_seed,
        messages=None if prompt.messages is None else tuple(without_surrogates(prompt.messages)),
        tools=None if prompt.tools is None else tuple(without_surrogates(prompt.tools)),
        chat_template_args=without_surrogates(dict(template_args)) or None,
    )


def _disagreement(found: Generation, refused: RejectedToken) -> Disagreement:
    return Disagreement(
        position=refused.position,
        draft_token=refused.draft_token,
        target_token=found.output[refused.position],
        draft_logp=_mass(refused.log_p),
        draft_logq=_mass(refused.log_q),
        target_logp=_mass(found.log_p[refused.position]),
        target_logq=_mass(found.log_q[refused.position]),
    )


def _mass(log_probability: float) -> float | None:
    """A log-probability as a record keeps it: None where there is no mass."""
    return None if log_probability == -math.inf else log_probability


def _content_id(pair: Pair, ids: Sequence[int], output: Sequence[int], decoding: Settings, source: str) -> str:
    """32 hex digits that say what was generated: the same run has the same ids, so what draws by id repeats too."""
    # What is told beside a text says nothing of the text, so teacher_top_k and bonus_draws are no part of this.
    how = (astuple(decoding.sampler), decoding.rule, decoding.num_draft_tokens)
    lengths = decoding.max_tokens, decoding.prefill_step_size
    said = [list(ids), list(output), (*how, *lengths), astuple(pair.identity), pair.adapter, source]
    return hashlib.sha256(repr(said).encode("utf-8", "surrogatepass")).hexdigest()[:32]
