"""The draft-and-verify loop: one prompt, whole rounds out, one synchronisation a round; knows nothing of text or files.

What flows in a round, K proposals, V = shared ids:
    draft    what its cache lacks (1 or 2 ids, more after plain steps) -> K forward passes -> proposals (K,), q (K, V)
    target   pending id + proposals (K + 1 ids) -> one forward pass -> p (K + 1, V)
    verify   accepted n, next id, all still on the device; then one evaluation of K + 2 ids and 2K + 2 scalars, and
             where they are asked for the k likeliest ids of every row of p (K + 1, k)
    cut      at a stop token or max_tokens; both caches lose exactly what was not kept
With K = 0 a round is a plain step of the target, and the one after it is enqueued before this one is read.

The floor of a round is K draft passes and one target pass. Between rounds, and at the end, the target's cache holds the
prompt and every emitted token but the last (`pending`), between plain steps that one too; the draft's lacks it, after a
fully accepted round also the last proposal, and after plain steps what they emitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from ..config import Rule
from ..data.records import Sampler
from ..data.teacher_top_k import TopK
from ..errors import ConfigError, PromptError
from ..models.pair import Pair
from .acceptance_rules import rule_for
from .round_sampler import BonusDraw, VerifiedRound, round_sampler_for

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Settings:
    """How one text is decoded; `sampler.seed` is the key of all its randomness.

    Two change nothing but what is told of the text: `teacher_top_k` ids of the target's distributions are kept, 0 keeps
    none; `bonus_draws` says what the draft would have proposed where it had no turn.
    """

    sampler: Sampler
    rule: Rule
    num_draft_tokens: int
    max_tokens: int
    prefill_step_size: int = 512
    teacher_top_k: int = 0
    bonus_draws: bool = True

    def __post_init__(self) -> None:
        rule_for(self.rule, self.sampler.temperature)
        if self.num_draft_tokens < 1 or self.max_tokens < 1:
            found = f"{self.num_draft_tokens} and {self.max_tokens}"
            raise ConfigError(f"num_draft_tokens and max_tokens must be at least 1, found {found}")
        if self.teacher_top_k < 0:
            raise ConfigError(f"teacher_top_k must be at least 0, found {self.teacher_top_k}")

    def kept_ids(self, width: int) -> int:
        """How many of `width` ids are kept of a distribution: no more than the sampler leaves."""
        if self.sampler.temperature == 0:
            return min(self.teacher_top_k, 1)
        return min(self.teacher_top_k, self.sampler.top_k or width, width)


@dataclass(frozen=True)
class Draw:
    """What the draft drew at one position, with log p and log q of it and of the id that was emitted there.

    -inf where a distribution has no mass. At a kept proposal both ids are the same.
    """

    draft_token: int
    draft_log_p: float
    draft_log_q: float
    token: int
    token_log_p: float
    token_log_q: float


@dataclass(frozen=True)
class Round:
    """One draft-then-verify cycle, cut at the end of the text.

    Attributes:
        start: position in the output of the first token.
        tokens: emitted, at least one; the last is a stop token if and only if the text ends with it.
        proposals: everything that was drafted, past the end of the text too.
        accepted: leading proposals that are part of the text.
        draws: one a position at which the draft had its turn: every position but a bonus one.
        bonus_log_p: log p of the bonus token that a fully accepted round ends with, else None.
        target_rows: the target's distributions before each proposal and after the last one, the likeliest ids of each:
            one row more than proposals; None where they were not asked for. No part of what makes rounds equal.
    """

    start: int
    tokens: tuple[int, ...]
    proposals: tuple[int, ...]
    accepted: int
    draws: tuple[Draw, ...]
    bonus_log_p: float | None
    target_rows: TopK | None = field(default=None, compare=False)


class DraftLength(Protocol):
    """Says how many tokens each round drafts; `draft_length` has the one that measures what pays."""

    def choose(self) -> int:
        """K of the next round, 0 for a plain step of the target."""

    def plain_steps(self) -> int:
        """How many plain steps to make before it is asked again, after it chose 0; at least 1."""

    def observe(self, drafted: int, accepted: int) -> None:
        """What became of a round, up to the text's end; told of plain steps as well, as (0, 0)."""


class Decoding:
    """Rounds of one prompt, one at a time.

    Iterating yields `Round`s until a stop token or `max_tokens`. After that `finish` is set. The position after a fully
    accepted round has no proposal; `bonus_draws` says what the draft would have proposed there, keyed by position in
    the output: the next round computes that distribution anyway, and `settle` does for the last round.
    """

    def __init__(
        self, pair: Pair, prompt: Sequence[int], settings: Settings, draft_length: DraftLength | None = None
    ) -> None:
        """Prepare, without computing anything.

        Args:
            pair: the models.
            prompt: ids.
            settings: how; its `num_draft_tokens` is the most that a round drafts.
            draft_length: chooses K round by round; None drafts `num_draft_tokens` in each.

        Raises:
            PromptError: no tokens, or more than the caches hold.
        """
        check_length(pair, len(prompt), settings)
        self.finish: Finish | None = None
        self.bonus_draws: dict[int, BonusDraw] = {}
        self.emitted = 0  # tokens so far
        self.settings = settings
        self._pair = pair
        self._prompt = mx.array(list(prompt), mx.uint32)
        self._target_cache = make_prompt_cache(pair.target)
        self._draft_cache = make_prompt_cache(pair.draft)
        self._draft_length = draft_length
        self._pending = int(prompt[-1])  # the last kept token: neither cache has it
        self._draft_lacks: list[int] = [self._pending]
        self._unsettled: tuple[int, int] | None = None  # position and id of a bonus token
        self._chooser = round_sampler_for(settings.sampler, pair.width, settings.rule, settings.kept_ids(pair.width))

    @property
    def cache_offsets(self) -> tuple[int, int]:
        """Tokens in the target's and in the draft's cache."""
        return self._target_cache[0].offset, self._draft_cache[0].offset

    def __iter__(self) -> Iterator[Round]:
        _prefill(self._pair.target, self._target_cache, self._prompt[:-1], self.settings.prefill_step_size)
        _prefill(self._pair.draft, self._draft_cache, self._prompt[:-1], self.settings.prefill_step_size)
        policy = self._draft_length
        while self.finish is None:
            count = self.settings.num_draft_tokens if policy is None else policy.choose()
            count = min(count, self.settings.num_draft_tokens, self.settings.max_tokens - self.emitted)
            rounds = [self._round(count)] if count else self._plain(1 if policy is None else policy.plain_steps())
            for found in rounds:
                if policy is not None:
                    drafted = len(found.proposals)
                    policy.observe(min(drafted, len(found.tokens)) if self.finish else drafted, found.accepted)
                yield found

    def settle(self) -> None:
        """Complete `bonus_draws` after the end: one more pass of the draft if the last round was fully accepted."""
        if self._unsettled is None:
            return
        position, token = self._unsettled
        logits = self._draft_pass(self._draft_lacks)
        self.bonus_draws[position] = self._chooser.bonus(logits[-2], token)
        self._unsettled = None

    # -- one round ----------------------------------------------------------------------------------------------------

    def _round(self, count: int) -> Round:
        """Draft `count` tokens, at least one, and verify them."""
        # 1. Draft: each step is enqueued while the one before it runs.
        self._chooser.begin(count)
        proposals = self._propose(count)

        # 2. Verify: the target sees the pending token and all proposals at once. Then the one synchronisation.
        ids = mx.concatenate([mx.array([self._pending], mx.uint32), *proposals])
        logits = self._pair.target(ids[None], cache=self._target_cache)[0]  # (K + 1, V of the target)
        mx.async_eval(logits)  # it runs while the verification is put together
        verified = self._chooser.verify(logits)
        if self._unsettled is not None and verified.bonus is not None:
            self.bonus_draws[self._unsettled[0]] = verified.bonus

        # 3. Cut at the end of the text, trim both caches by exactly what was not kept, move on.
        found = self._cut(verified)
        kept = len(found.tokens)
        trim_prompt_cache(self._target_cache, count + 1 - kept)
        trim_prompt_cache(self._draft_cache, max(count - kept, 0))
        full = found.bonus_log_p is not None
        self._pending = found.tokens[-1]
        self._draft_lacks = list(found.tokens[-2:] if full else found.tokens[-1:])
        self._unsettled = (found.start + count, self._pending) if full and self.settings.bonus_draws else None
        self.emitted += kept
        return found

    def _propose(self, count: int) -> list[mx.array]:
        """K proposals of shape (1,), each enqueued."""
        proposals: list[mx.array] = []
        logits = self._draft_pass(self._draft_lacks)
        bonus_token = None if self._unsettled is None else self._unsettled[1]
        for i in range(count):
            if i:
                logits, bonus_token = self._pair.draft(proposals[-1][None], cache=self._draft_cache)[0], None
            mx.async_eval(logits)  # it runs while the choice is put together
            proposals.append(self._chooser.propose(logits, bonus_token))
            mx.async_eval(proposals[-1])
        return proposals

    def _draft_pass(self, ids: list[int]) -> mx.array:
        """The draft's logits (M, V) over what its cache lacked, M as many as fit one step of the prefill."""
        step = max(self.settings.prefill_step_size, 2)  # a bonus token's row is the one before the last
        last = max(0, len(ids) - step)
        if last:
            _prefill(self._pair.draft, self._draft_cache, mx.array(ids[:last], mx.uint32), step)
        return self._pair.draft(mx.array(ids[last:], mx.uint32)[None], cache=self._draft_cache)[0]

    def _plain(self, most: int) -> Iterator[Round]:
        """Up to `most` plain steps of the target; each is enqueued before the one before it is read."""
        most = min(most, self.settings.max_tokens - self.emitted)
        following = self._plain_step(mx.array([self._pending], mx.uint32))
        for left in reversed(range(most)):
            enqueued = self._plain_step(following) if left else None
            token = int(following.item())
            stops = token in self._pair.stop_tokens
            found = Round(self.emitted, (token,), (), 0, (), None)
            self.emitted += 1
            self._pending = token
            self._draft_lacks.append(token)
            self._unsettled = None
            if stops or self.emitted == self.settings.max_tokens:
                self.finish = "stop" if stops else "length"
            if stops and enqueued is not None:
                trim_prompt_cache(self._target_cache, 1)
            yield found
            if enqueued is None or stops:
                return
            following = enqueued

    def _plain_step(self, ids: mx.array) -> mx.array:
        logits = self._pair.target(ids[None], cache=self._target_cache)[0]
        following = self._chooser.following(logits)
        mx.async_eval(following)
        return following

    def _cut(self, found: VerifiedRound) -> Round:
        """The round up to a stop token or `max_tokens`; sets `finish` where the text ends."""
        proposals, count = found.proposals, len(found.proposals)
        tokens = [*proposals[: found.accepted], found.following][: self.settings.max_tokens - self.emitted]
        stop = next((i for i, token in enumerate(tokens) if token in self._pair.stop_tokens), None)
        if stop is not None:
            tokens = tokens[: stop + 1]
            self.finish = "stop"
        elif self.emitted + len(tokens) == self.settings.max_tokens:
            self.finish = "length"
        kept = min(found.accepted, len(tokens))
        alike = zip(proposals[:kept], found.log_p, found.log_q, strict=False)
        draws = [Draw(token, log_p, log_q, token, log_p, log_q) for token, log_p, log_q in alike]
        if kept < min(count, len(tokens)):
            refused = proposals[kept], found.log_p[kept], found.log_q[kept]
            draws.append(Draw(*refused, found.following, found.following_log_p, found.following_log_q))
        return Round(
            start=self.emitted,
            tokens=tuple(tokens),
            proposals=tuple(proposals),
            accepted=kept,
            draws=tuple(draws),
            bonus_log_p=found.following_log_p if len(tokens) > count else None,
            target_rows=found.rows,
        )


def count_rounds(rounds: Sequence[Round], length: int) -> tuple[tuple[int, int], ...]:
    """(drafted, accepted) of each round of a text of `length` tokens; proposals past the end of it count as nothing."""
    return tuple((min(len(found.proposals), length - found.start), found.accepted) for found in rounds)


def check_length(pair: Pair, prompt_tokens: int, settings: Settings) -> None:
    """Raise PromptError unless the prompt has tokens, and it, its output and one round fit into both caches."""
    if prompt_tokens == 0:
        raise PromptError("the prompt is empty; expected at least one token")
    needed = prompt_tokens + settings.max_tokens + settings.num_draft_tokens + 1
    if pair.context is not None and needed > pair.context:
        raise PromptError(
            f"prompt of {prompt_tokens} tokens, {settings.max_tokens} to generate and a round need {needed} positions, "
            f"the pair holds {pair.context}; shorten the prompt or lower max_tokens"
        )


def fits(pair: Pair, prompt_tokens: int, settings: Settings) -> bool:
    """Whether `check_length` lets such a prompt through."""
    try:
        check_length(pair, prompt_tokens, settings)
    except PromptError:
        return False
    return True


def _prefill(model: nn.Module, cache: list[Any], ids: mx.array, step: int) -> None:
    for start in range(0, ids.size, step):
        model(ids[start : start + step][None], cache=cache)
        mx.eval([layer.state for layer in cache])
    mx.clear_cache()
