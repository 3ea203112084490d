"""A round sampler for penalized logits: penalties change target and draft alike, each position by the tokens before it.

Both distributions are changed before they are compared, so every acceptance rule stays exact: the output has the law of
the target's penalized distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from .penalties import Penalties
from .round_sampler import BonusDraw, RoundSampler, VerifiedRound


class PenalizedSampler:
    """A round sampler that gives another one penalized logits.

    Args:
        inner: draws and verifies.
        penalties: at least one of them on.
        prompt: tokens.
        width: V, tokens that target and draft share.
    """

    def __init__(self, inner: RoundSampler, penalties: Penalties, prompt: Sequence[int], width: int) -> None:
        self._inner, self._penalties, self._width = inner, penalties, width
        seen = mx.zeros(width, mx.bool_)
        seen[mx.array([token for token in prompt if token < width], mx.uint32)] = True
        self._in_prompt = seen
        self._counts = mx.zeros(width, mx.float32)  # of the output
        self._proposed: list[mx.array] = []  # in this round, (V,) each: one where the proposal is

    def begin(self, count: int) -> None:
        """Open a round; `RoundSampler.begin`."""
        self._proposed = []
        self._inner.begin(count)

    def propose(self, logits: mx.array, bonus_token: int | None = None) -> mx.array:  # noqa: ARG002
        """A draw from the penalized draft; `RoundSampler.propose`. The bonus draw is not kept."""
        counts = sum(self._proposed, self._counts)
        proposal = self._inner.propose(self._penalized(logits[-1:], counts[None]))
        self._proposed.append(self._one_hot(proposal))
        return proposal

    def verify(self, logits: mx.array) -> VerifiedRound:
        """Each row with the proposals before it; `RoundSampler.verify`."""
        before = [self._counts]
        for proposed in self._proposed:
            before.append(before[-1] + proposed)
        return self._inner.verify(self._penalized(logits, mx.stack(before)))

    def following(self, logits: mx.array) -> mx.array:
        """A draw from the penalized target, which is part of the output from now on."""
        token = self._inner.following(self._penalized(logits, self._counts[None]))
        self._counts = self._counts + self._one_hot(token)
        return token

    def keep(self, tokens: Sequence[int]) -> None:
        """These tokens of the round are part of the output."""
        for token in tokens:
            self._counts = self._counts + self._one_hot(mx.array([token]))
        mx.async_eval(self._counts)

    def bonus(self, logits: mx.array, token: int) -> BonusDraw:
        """None is ever asked for: `Settings` refuses it, because penalized outputs are not recorded."""
        del logits, token
        raise ValueError("a penalized output keeps no bonus draws")

    def _one_hot(self, token: mx.array) -> mx.array:
        return (mx.arange(self._width) == token).astype(mx.float32)

    def _penalized(self, logits: mx.array, counts: mx.array) -> mx.array:
        """(M, V) with the counts (M, V) of the output before each row."""
        how, logits = self._penalties, logits[..., : self._width].astype(mx.float32)
        if how.repetition != 1.0:
            repeated = mx.where(logits > 0, logits / how.repetition, logits * how.repetition)
            logits = mx.where(self._in_prompt | (counts > 0), repeated, logits)
        return logits - how.frequency * counts - how.presence * (counts > 0)
