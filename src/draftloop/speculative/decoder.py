"""The draft-and-verify loop: one prompt, whole rounds out, one synchronisation a round; knows nothing of text or files.

What flows in a round, K = num_draft_tokens, V = shared ids:
    draft    pending (1 or 2 ids) -> K forward passes of one id -> proposals (K,), log q (K, V)
    target   pending id + proposals (K + 1 ids) -> one forward pass -> log p (K + 1, V)
    verify   accepted n, next id, all still on the device; then one evaluation of K + 2 ids and 2K + 2 scalars, and
             where they are asked for the k likeliest ids of every row of log p (K + 1, k)
    cut      at a stop token or max_tokens; both caches lose exactly what was not kept

The floor of a round is K draft passes and one target pass. Between rounds, and at the end, the caches hold the
prompt and every emitted token but the last (`pending`); after a fully accepted round the draft's cache also lacks the
last proposal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import mlx.core as mx
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from ..distributions import TopK
from ..errors import ConfigError, PromptError
from ..pair import Pair
from ..records import Sampler
from .likeliest import Likeliest, likeliest, to_numpy
from .rules import Rule, draw, rule_for, verify
from .transforms import sampling_log_probs

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Settings:
    """How one text is decoded; `sampler.seed` is the key of all its randomness.

    `teacher_top_k` changes nothing in the text: so many ids of the target's distributions are kept; 0 keeps none.
    """

    sampler: Sampler
    rule: Rule
    num_draft_tokens: int
    max_tokens: int
    prefill_step_size: int = 512
    teacher_top_k: int = 0

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
class BonusDraw:
    """What the draft would have drawn at a bonus position, and its log q of the token that was emitted there."""

    draft_token: int
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


class Decoding:
    """Rounds of one prompt, one at a time.

    Iterating yields `Round`s until a stop token or `max_tokens`. After that `finish` is set. The position after a fully
    accepted round has no proposal; `bonus_draws` says what the draft would have proposed there, keyed by position in
    the output: the next round computes that distribution anyway, and `settle` does for the last round.
    """

    def __init__(self, pair: Pair, prompt: Sequence[int], settings: Settings) -> None:
        """Prepare, without computing anything.

        Raises:
            PromptError: no tokens, or more than the caches hold.
        """
        check_length(pair, len(prompt), settings)
        self.finish: Finish | None = None
        self.bonus_draws: dict[int, BonusDraw] = {}
        self.emitted = 0  # tokens so far
        self._pair = pair
        self.settings = settings
        self._prompt = mx.array(list(prompt), mx.uint32)
        self._target_cache = make_prompt_cache(pair.target)
        self._draft_cache = make_prompt_cache(pair.draft)
        self._pending = [int(prompt[-1])]  # the last kept token; before it, after a full round, the last proposal
        self._key = mx.random.key(settings.sampler.seed)
        self._unsettled: tuple[int, int] | None = None  # position and id of a bonus token
        self._kept_ids = settings.kept_ids(pair.width)

    @property
    def cache_offsets(self) -> tuple[int, int]:
        """Tokens in the target's and in the draft's cache."""
        return self._target_cache[0].offset, self._draft_cache[0].offset

    def __iter__(self) -> Iterator[Round]:
        _prefill(self._pair.target, self._target_cache, self._prompt[:-1], self.settings.prefill_step_size)
        _prefill(self._pair.draft, self._draft_cache, self._prompt[:-1], self.settings.prefill_step_size)
        while self.finish is None:
            yield self._round()

    def settle(self) -> None:
        """Complete `bonus_draws` after the end: one more pass of the draft if the last round was fully accepted."""
        if self._unsettled is None:
            return
        keys = mx.random.split(self._key, 2)
        log_q = self._draft_step(mx.array(self._pending, mx.uint32))
        bonus = draw(log_q[0], keys[0], self.settings.rule)
        self._settle_with(log_q[0], bonus)

    # -- one round ----------------------------------------------------------------------------------------------------

    def _round(self) -> Round:
        settings = self.settings
        count = min(settings.num_draft_tokens, settings.max_tokens - self.emitted)
        self._key, *keys = mx.random.split(self._key, count + 3)

        # 1. Draft: each step is enqueued while the one before it runs.
        proposals, log_q, bonus = self._propose(count, keys)

        # 2. Verify: the target sees the pending token and all proposals at once.
        ids = mx.concatenate([mx.array(self._pending[-1:], mx.uint32), proposals])
        logits = self._pair.target(ids[None], cache=self._target_cache)[0]  # (K + 1, V of the target)
        log_p = sampling_log_probs(logits, settings.sampler, self._pair.width)
        accepted, following = verify(log_p, log_q, proposals, keys[count], settings.rule)

        # 3. The one synchronisation: ids, the scalars that a record needs, and what is kept of log p.
        rows = mx.minimum(accepted, count - 1)
        chosen = proposals[:, None]
        scalars = mx.concatenate(
            [
                mx.take_along_axis(log_p[:count], chosen, axis=-1).squeeze(-1),
                mx.take_along_axis(log_q, chosen, axis=-1).squeeze(-1),
                mx.stack([log_p[accepted][following], log_q[rows][following]]),
            ]
        )
        kept_rows = likeliest(log_p, self._kept_ids) if self._kept_ids else None
        mx.eval(proposals, accepted, following, scalars, bonus, kept_rows)
        n, after, drafted = int(accepted.item()), int(following.item()), [int(i) for i in proposals.tolist()]
        values: list[float] = scalars.tolist()
        if bonus is not None:
            self._settle_with(*bonus)

        # 4. Cut at the end of the text, trim both caches by exactly what was not kept, move on.
        found = self._cut(drafted, n, after, values, kept_rows)
        kept = len(found.tokens)
        trim_prompt_cache(self._target_cache, count + 1 - kept)
        trim_prompt_cache(self._draft_cache, max(count - kept, 0))
        full = found.bonus_log_p is not None
        self._pending = list(found.tokens[-2:] if full else found.tokens[-1:])
        self._unsettled = (self.emitted + count, after) if full else None
        self.emitted += kept
        return found

    def _propose(self, count: int, keys: list[mx.array]) -> tuple[mx.array, mx.array, tuple[mx.array, mx.array] | None]:
        """K proposals (K,), their log q (K, V), and what the draft would have said at the last bonus position."""
        proposals: list[mx.array] = []
        rows: list[mx.array] = []
        bonus = None
        ids = mx.array(self._pending, mx.uint32)
        for i in range(count):
            log_q = self._draft_step(ids)  # (1 or 2, V)
            if i == 0 and self._unsettled is not None:
                bonus = (log_q[0], draw(log_q[0], keys[count + 1], self.settings.rule))
            ids = draw(log_q[-1:], keys[i], self.settings.rule).astype(mx.uint32)  # (1,)
            mx.async_eval(ids)
            proposals.append(ids)
            rows.append(log_q[-1:])
        return mx.concatenate(proposals), mx.concatenate(rows), bonus

    def _draft_step(self, ids: mx.array) -> mx.array:
        logits = self._pair.draft(ids[None], cache=self._draft_cache)[0]
        return sampling_log_probs(logits, self.settings.sampler, self._pair.width)

    def _settle_with(self, log_q: mx.array, drawn: mx.array) -> None:
        if self._unsettled is None:
            return
        position, token = self._unsettled
        self.bonus_draws[position] = BonusDraw(int(drawn.item()), float(log_q[token].item()))
        self._unsettled = None

    def _cut(
        self, proposals: list[int], accepted: int, after: int, values: list[float], rows: Likeliest | None
    ) -> Round:
        """The round up to a stop token or `max_tokens`; sets `finish` where the text ends."""
        count = len(proposals)
        tokens = [*proposals[:accepted], after][: self.settings.max_tokens - self.emitted]
        stop = next((i for i, token in enumerate(tokens) if token in self._pair.stop_tokens), None)
        if stop is not None:
            tokens = tokens[: stop + 1]
            self.finish = "stop"
        elif self.emitted + len(tokens) == self.settings.max_tokens:
            self.finish = "length"
        kept = min(accepted, len(tokens))
        log_p, log_q, after_log_p, after_log_q = values[:count], values[count : 2 * count], *values[2 * count :]
        draws = [Draw(proposals[i], log_p[i], log_q[i], proposals[i], log_p[i], log_q[i]) for i in range(kept)]
        if kept < min(count, len(tokens)):
            draws.append(Draw(proposals[kept], log_p[kept], log_q[kept], after, after_log_p, after_log_q))
        return Round(
            start=self.emitted,
            tokens=tuple(tokens),
            proposals=tuple(proposals),
            accepted=kept,
            draws=tuple(draws),
            bonus_log_p=after_log_p if len(tokens) > count else None,
            target_rows=None if rows is None else to_numpy(rows),
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
