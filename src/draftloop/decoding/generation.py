"""A generation: one finished output, and the rounds of speculation along it. Knows no model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..data.records import Finish
from ..data.teacher_top_k import TopK, concatenate_top_k
from .decoder import Round, count_rounds
from .round_sampler import BonusDraw


@dataclass(frozen=True)
class RejectedToken:
    """A proposal that was rejected, with log p and log q of it; -inf where there is no mass."""

    position: int
    draft_token: int
    log_p: float
    log_q: float


@dataclass(frozen=True)
class Generation:
    """What a record needs to know of an output of N tokens; a log-probability is -inf where there is no mass.

    Attributes:
        output: what the target emitted.
        draft_output: what the draft proposed at each position, or would have proposed at a bonus position.
        log_p: of each emitted token under the target.
        log_q: likewise under the draft.
        rounds: (drafted, accepted) of each, proposals past the end not counted.
        rejections: one of every round that did not accept all of its proposals, in order.
        finish: what ended it.
        rows: the target's top-k tokens at every position; None where none are kept.
        simulated: whether the rounds were simulated offline.
    """

    output: tuple[int, ...]
    draft_output: tuple[int, ...]
    log_p: tuple[float, ...]
    log_q: tuple[float, ...]
    rounds: tuple[tuple[int, int], ...]
    rejections: tuple[RejectedToken, ...]
    finish: Finish
    rows: TopK | None = None
    simulated: bool = False

    @classmethod
    def of_rounds(cls, rounds: Sequence[Round], bonus_draws: Mapping[int, BonusDraw], finish: Finish) -> Generation:
        """The generation of a live decoding; `bonus_draws` by position, one for every bonus token."""
        drafted: list[int] = []
        log_p: list[float] = []
        log_q: list[float] = []
        rejections: list[RejectedToken] = []
        for round_ in rounds:
            for offset, proposal in enumerate(round_.verified):
                drafted.append(proposal.draft_token)
                log_p.append(proposal.token_log_p)
                log_q.append(proposal.token_log_q)
                if offset >= round_.accepted:
                    rejected = proposal.draft_token, proposal.draft_log_p, proposal.draft_log_q
                    rejections.append(RejectedToken(round_.start + offset, *rejected))
            if round_.bonus_log_p is not None:
                bonus = bonus_draws[round_.start + len(round_.verified)]
                drafted.append(bonus.draft_token)
                log_p.append(round_.bonus_log_p)
                log_q.append(bonus.token_log_q)
        output = tuple(token for round_ in rounds for token in round_.tokens)
        # Rows past a rejection are left out: the output went on without what was proposed there (decisions: learning).
        rows = [round_.target_rows[: len(round_.tokens)] for round_ in rounds if round_.target_rows is not None]
        return cls(
            output=output,
            draft_output=tuple(drafted),
            log_p=tuple(log_p),
            log_q=tuple(log_q),
            rounds=count_rounds(rounds, len(output)),
            rejections=tuple(rejections),
            finish=finish,
            rows=concatenate_top_k(rows) if rows else None,
        )


def generation_seed(run_seed: int, prompt_tokens: Iterable[int]) -> int:
    """The seed of one generation, 0 .. 2**63 - 1: a hash of the run's seed and the prompt."""
    text = f"{run_seed}:{','.join(map(str, prompt_tokens))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
