"""The round sampler turns logits into the draft's proposals, and verifies them. Knows no model, cache or output.

`GreedySampler` compares argmax tokens and computes nothing else of a distribution; `StochasticSampler` draws at a
temperature. Nothing waits for the device before `verify` reads, once, what a round needs to know: K + 2 tokens and
2K + 2 scalars, and the top-k tokens of each of the target's rows where those are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from ..config import Rule
from ..data.records import Sampler
from ..data.teacher_top_k import TopK
from .acceptance_rules import verify_proposals
from .draws import draw_tokens, exponentials_per_draw
from .random_stream import RandomStream
from .sampling_filters import sampling_probs
from .top_k import to_numpy, top_k_tokens


@dataclass(frozen=True)
class BonusDraw:
    """What the draft would have drawn at a bonus position, and its log q of the token that was emitted there."""

    draft_token: int
    token_log_q: float


@dataclass(frozen=True)
class VerifiedRound:
    """What was read of a round; -inf where a distribution has no mass.

    Attributes:
        proposals: K tokens.
        accepted: how many of them are kept.
        following: the token emitted after these.
        log_p: of each proposal under the target.
        log_q: of each proposal under the draft.
        following_log_p: of `following` where it stands.
        following_log_q: likewise; the last proposal's row where all were kept, which then means nothing.
        rows: the target's top-k tokens before each proposal and after the last; None where none are kept.
        bonus: the draw at an earlier bonus position, where `propose` was given its token.
    """

    proposals: list[int]
    accepted: int
    following: int
    log_p: list[float]
    log_q: list[float]
    following_log_p: float
    following_log_q: float
    rows: TopK | None
    bonus: BonusDraw | None


class RoundSampler(Protocol):
    """Draws one output's tokens: `begin`, `propose` K times, `verify` in a round; `following` in a plain step."""

    def begin(self, count: int, /) -> None:
        """Open a round of `count` proposals."""

    def propose(self, logits: mx.array, bonus_token: int | None = None) -> mx.array:
        """The next proposal (1,), not evaluated, after the last row of the draft's `logits` (M, V).

        `bonus_token` is the one that was emitted at the end of a fully accepted round: the row before the last is the
        draft's distribution at its position.
        """

    def verify(self, logits: mx.array) -> VerifiedRound:
        """Verify the proposals by the target's `logits` (K + 1, V); waits for the device."""

    def following(self, logits: mx.array) -> mx.array:
        """The target's next token after its one row of `logits` (1, V): (1,), not evaluated."""

    def keep(self, tokens: Sequence[int], /) -> None:
        """Learn which tokens of a round are part of the output."""

    def bonus(self, logits: mx.array, token: int) -> BonusDraw:
        """The draft's draw at a bonus position, from its row of `logits` (V,); waits for the device."""


class GreedySampler:
    """Temperature 0. Nothing has mass but the argmax, so an equal token gives the log-probability."""

    def __init__(self, width: int, top_k_kept: int = 0) -> None:
        self._width, self._top_k_kept = width, top_k_kept
        self.begin(0)

    def begin(self, _count: int) -> None:
        """Open a round; `RoundSampler.begin`."""
        self._proposals: list[mx.array] = []
        self._bonus: tuple[mx.array, int] | None = None

    def propose(self, logits: mx.array, bonus_token: int | None = None) -> mx.array:
        """The argmax; `RoundSampler.propose`."""
        if bonus_token is not None:
            self._bonus = self._best(logits[-2]), bonus_token
        self._proposals.append(self._best(logits[-1:]))
        return self._proposals[-1]

    def verify(self, logits: mx.array) -> VerifiedRound:
        """Argmax against argmax; `RoundSampler.verify`."""
        best, bonus = self._best(logits), self._bonus
        mx.eval(best, *self._proposals, *(bonus or ())[:1])
        own: list[int] = best.tolist()
        proposals = [int(proposal.item()) for proposal in self._proposals]
        agree = [proposal == token for proposal, token in zip(proposals, own, strict=False)]
        accepted = agree.index(False) if False in agree else len(agree)
        return VerifiedRound(
            proposals=proposals,
            accepted=accepted,
            following=own[accepted],
            log_p=[0.0 if same else -math.inf for same in agree],
            log_q=[0.0] * len(agree),
            following_log_p=0.0,
            following_log_q=-math.inf,
            rows=_one_hot(own) if self._top_k_kept else None,
            bonus=None if bonus is None else _greedy_bonus(int(bonus[0].item()), bonus[1]),
        )

    def following(self, logits: mx.array) -> mx.array:
        """The target's argmax."""
        return self._best(logits)

    def keep(self, tokens: Sequence[int]) -> None:
        """Nothing depends on them."""

    def bonus(self, logits: mx.array, token: int) -> BonusDraw:
        """The draft's argmax there."""
        return _greedy_bonus(int(self._best(logits).item()), token)

    def _best(self, logits: mx.array) -> mx.array:
        return mx.argmax(logits[..., : self._width], axis=-1).astype(mx.uint32)


class StochasticSampler:
    """Above temperature 0. All of its randomness is of streams of its own: `sampler.seed` is their key."""

    def __init__(self, sampler: Sampler, rule: Rule, width: int, top_k_kept: int = 0) -> None:
        self._sampler, self._rule, self._width, self._top_k_kept = sampler, rule, width, top_k_kept
        self._random, self._beside = RandomStream(sampler.seed), RandomStream(sampler.seed, stream=1)
        self._per_draw = exponentials_per_draw(width)
        self.begin(0)

    def begin(self, count: int) -> None:
        """Open a round; `RoundSampler.begin`."""
        self._count = count
        self._verdicts = mx.array(self._random.uniforms(count))
        # For K proposals, and the K + 1 that the verification may draw.
        self._draws = mx.array(self._random.exponentials(2 * count + 1, self._per_draw))
        self._proposals: list[mx.array] = []
        self._q: list[mx.array] = []
        self._bonus: tuple[mx.array, mx.array] | None = None

    def propose(self, logits: mx.array, bonus_token: int | None = None) -> mx.array:
        """A draw from the draft; `RoundSampler.propose`."""
        if bonus_token is not None:
            self._bonus = self._bonus_arrays(logits[-2], bonus_token)
        q = self._probs(logits[-1:])
        at = len(self._proposals)
        proposal = draw_tokens(q, self._draws[at : at + 1])
        self._proposals.append(proposal)
        self._q.append(q)
        return proposal

    def verify(self, logits: mx.array) -> VerifiedRound:
        """By the rule in use; `RoundSampler.verify`."""
        count = self._count
        proposals, q, p = mx.concatenate(self._proposals), mx.concatenate(self._q), self._probs(logits)
        verified = verify_proposals(p, q, proposals, self._verdicts, self._draws[count:], self._rule)
        kept = top_k_tokens(p, self._top_k_kept) if self._top_k_kept else None
        tokens = mx.concatenate([proposals, verified.accepted[None].astype(mx.uint32), verified.following[None]])
        probabilities = mx.concatenate([verified.p, verified.q])
        bonus = self._bonus
        mx.eval(tokens, probabilities, kept, bonus)
        *drafted, accepted, following = (int(i) for i in tokens.tolist())
        log_probs = [_log(value) for value in probabilities.tolist()]
        return VerifiedRound(
            proposals=drafted,
            accepted=accepted,
            following=following,
            log_p=log_probs[:count],
            log_q=log_probs[count + 1 : -1],
            following_log_p=log_probs[count],
            following_log_q=log_probs[-1],
            rows=None if kept is None else to_numpy(kept),
            bonus=None if bonus is None else _read_bonus(*bonus),
        )

    def following(self, logits: mx.array) -> mx.array:
        """A draw from the target."""
        return draw_tokens(self._probs(logits), mx.array(self._random.exponentials(1, self._per_draw)))

    def keep(self, tokens: Sequence[int]) -> None:
        """Nothing depends on them."""

    def bonus(self, logits: mx.array, token: int) -> BonusDraw:
        """A draw from the draft."""
        return _read_bonus(*self._bonus_arrays(logits, token))

    def _probs(self, logits: mx.array) -> mx.array:
        return sampling_probs(logits, self._sampler, self._width)

    def _bonus_arrays(self, logits: mx.array, token: int) -> tuple[mx.array, mx.array]:
        """What the draft draws, and its probability of the token that was emitted."""
        q = self._probs(logits)
        return draw_tokens(q, mx.array(self._beside.exponentials(self._per_draw))), q[token]


def round_sampler_for(sampler: Sampler, width: int, rule: Rule | None = None, top_k_kept: int = 0) -> RoundSampler:
    """The round sampler of one output.

    Args:
        sampler: its seed is the key of all randomness.
        width: tokens that target and draft share.
        rule: the acceptance rule, one that fits the temperature; plain steps need none.
        top_k_kept: how many top-k tokens are read of every row of the target's.
    """
    if sampler.temperature == 0:
        return GreedySampler(width, top_k_kept)
    return StochasticSampler(sampler, rule or "rejection", width, top_k_kept)


def _log(probability: float) -> float:
    return math.log(min(probability, 1.0)) if probability > 0 else -math.inf


def _read_bonus(drawn: mx.array, probability: mx.array) -> BonusDraw:
    return BonusDraw(int(drawn.item()), _log(float(probability.item())))


def _one_hot(tokens: list[int]) -> TopK:
    rows = len(tokens)
    return TopK(np.array(tokens, np.int32)[:, None], np.zeros((rows, 1), np.float32), np.zeros(rows, np.float32))


def _greedy_bonus(best: int, token: int) -> BonusDraw:
    return BonusDraw(best, 0.0 if best == token else -math.inf)
