"""The draft-and-verify loop: one prompt in, whole rounds out, one synchronisation per round. Knows no text and no file.

A round drafts K tokens, verifies them in one pass of the target, cuts what was emitted at the end of the output, and
takes back from both caches exactly what was not kept: the steps of `Decoding._round`. With K = 0 a round is a plain
step of the target, and the next step is enqueued before this one is read: the draft is not asked, not even for the
prompt, before a round drafts. A round costs at least K draft passes and one target pass.

What the caches hold of the prompt and the emitted tokens, the last of which is `pending`:

    after                     target                               draft
    the prefill               all but the pending token            nothing
    a round                   all but the pending token            all but the pending token
    a fully accepted round    all but the pending token            all but the last proposal and the pending token
    a plain step              all while another one is enqueued,   what it held before the plain steps
                              else all but the pending token
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import mlx.core as mx

from ..caches import RewindableCache, new_cache
from ..config import Rule
from ..data.records import Finish, Sampler
from ..data.teacher_top_k import TopK
from ..errors import ConfigError, PromptError
from ..models.pair import Pair
from .acceptance_rules import rule_for
from .penalized_sampler import PenalizedSampler
from .penalties import NO_PENALTIES, Penalties
from .round_sampler import BonusDraw, RoundSampler, round_sampler_for
from .token_logprobs import TokenLogprob, token_logprobs

_ONE_PASS = 32  # tokens that a draft reads at once with all of their logits, which are V numbers each


@dataclass(frozen=True)
class Settings:
    """How one output is decoded; `sampler.seed` is the key of all its randomness.

    `num_draft_tokens` is K, or the most that a policy may choose; 0 never drafts.

    Three settings change only what is reported of the output, not the output: `teacher_top_k` is how many top-k tokens
    of the target's distributions are kept (0 keeps none), `keep_bonus_draws` adds what the draft would have proposed at
    the bonus positions, `logprobs` is how many of the target's likeliest tokens are named at each position with their
    log-probabilities, before sampler and penalties; None names none, and not the emitted one.
    """

    sampler: Sampler
    rule: Rule
    num_draft_tokens: int
    max_tokens: int
    prefill_step_size: int = 512
    teacher_top_k: int = 0
    keep_bonus_draws: bool = True
    penalties: Penalties = NO_PENALTIES
    logprobs: int | None = None

    def __post_init__(self) -> None:
        rule_for(self.rule, self.sampler.temperature)
        if self.num_draft_tokens < 0 or self.max_tokens < 1:
            given = f"{self.num_draft_tokens} and {self.max_tokens}"
            raise ConfigError(f"num_draft_tokens must be at least 0 and max_tokens at least 1, found {given}")
        if self.teacher_top_k < 0:
            raise ConfigError(f"teacher_top_k must be at least 0, found {self.teacher_top_k}")
        if self.keep_bonus_draws and not self.penalties.are_off:
            raise ConfigError("a penalized output has no bonus draws to keep; expected keep_bonus_draws=False")

    def top_k_kept(self, width: int) -> int:
        """How many top-k tokens of a distribution over `width` are kept: no more than the sampler leaves."""
        if self.sampler.temperature == 0:
            return min(self.teacher_top_k, 1)
        return min(self.teacher_top_k, self.sampler.top_k or width, width)


@dataclass(frozen=True)
class VerifiedProposal:
    """A proposal up to the first rejection, with log p and log q of it and of the token that was emitted there.

    -inf where a distribution has no mass. At an accepted proposal both tokens are the same.
    """

    draft_token: int
    draft_log_p: float
    draft_log_q: float
    token: int
    token_log_p: float
    token_log_q: float


@dataclass(frozen=True)
class Round:
    """One draft-then-verify cycle, cut at the end of the output.

    Attributes:
        start: position in the output of the first token.
        tokens: emitted, at least one; the last is a stop token if and only if the output ends with it.
        proposals: everything that was drafted, past the end of the output too.
        accepted: leading proposals that are part of the output.
        verified: the accepted proposals, and the rejected one where there is one: one per position but a bonus one.
        bonus_log_p: log p of the bonus token that a fully accepted round ends with, else None.
        target_rows: the top-k tokens of the target's distributions before each proposal and after the last one: one row
            more than proposals; None where none are kept. Rounds are compared without it.
        logprobs: of each emitted token; None where none are wanted. Rounds are compared without it.
    """

    start: int
    tokens: tuple[int, ...]
    proposals: tuple[int, ...]
    accepted: int
    verified: tuple[VerifiedProposal, ...]
    bonus_log_p: float | None
    target_rows: TopK | None = field(default=None, compare=False)
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, compare=False)

    def cut(self, length: int) -> Round:
        """The same round where the output ends after `length` of its tokens, at least one."""
        if length == len(self.tokens):
            return self
        logprobs = None if self.logprobs is None else self.logprobs[:length]
        verified = self.verified[:length]  # what was emitted there was accepted
        return replace(
            self,
            tokens=self.tokens[:length],
            accepted=length,
            verified=verified,
            bonus_log_p=None,
            logprobs=logprobs,
        )


class DraftLength(Protocol):
    """Chooses how many tokens each round drafts; the adaptive one is in `draft_length`."""

    def choose(self) -> int:
        """K of the next round, 0 for a plain step of the target."""

    def plain_steps(self) -> int:
        """How many plain steps to make before the next `choose`, after it chose 0; at least 1."""

    def observe(self, drafted: int, accepted: int) -> None:
        """Learn what became of a round, up to the end of the output; a plain step is (0, 0)."""


@dataclass(frozen=True)
class KnownPrefix:
    """Caches that have read beginnings of a prompt already; they are written on, so they are nobody else's any more.

    Attributes:
        target: has read the first `target_length` tokens; None where that is 0.
        draft: likewise, with the adapter in use.
    """

    target: RewindableCache | None = None
    target_length: int = 0
    draft: RewindableCache | None = None
    draft_length: int = 0


class Decoding:
    """Rounds of one prompt, one at a time.

    Iterating yields `Round`s until a stop token or `max_tokens`. After that `finish` is set. The position after a fully
    accepted round has no proposal; `bonus_draws` says what the draft would have proposed there, keyed by position in
    the output: the next round computes that distribution anyway, and `complete_bonus_draws` does for the last round.
    With a `draft_length` some are missing: a plain step drops the pending bonus draw.
    """

    def __init__(
        self,
        pair: Pair,
        prompt: Sequence[int],
        settings: Settings,
        draft_length: DraftLength | None = None,
        known: KnownPrefix | None = None,
    ) -> None:
        """Prepare, without computing anything.

        Args:
            pair: the models.
            prompt: tokens, at least one.
            settings: how; its `num_draft_tokens` is the most that a round drafts.
            draft_length: chooses K round by round; None drafts `num_draft_tokens` in each.
            known: what was read of the prompt before, never its last token, by caches that take a round back; None
                where nothing was.

        Raises:
            PromptError: no tokens, or more than the caches hold.
        """
        check_length(pair, len(prompt), settings)
        known = known or KnownPrefix()
        self.finish: Finish | None = None
        self.bonus_draws: dict[int, BonusDraw] = {}
        self.emitted = 0  # tokens so far
        self.settings = settings
        self.most_plain_steps = settings.max_tokens  # at a time
        self.is_between = True  # no plain step is enqueued
        self.has_read_prompt = known.target_length >= len(prompt) - 1  # but for its last token
        self._pair = pair
        self._prompt = mx.array(list(prompt[known.target_length :]), mx.uint32)  # what the target's cache lacks
        self._slack = slack_for(settings)
        self._target = known.target or new_cache(pair.target, self._slack)
        self._known_draft = known.draft
        self._draft_length = draft_length
        self._pending = int(prompt[-1])  # the last emitted token: neither cache has it
        self._draft_lacks: list[int] = list(prompt[known.draft_length :])
        self._pending_bonus: tuple[int, int] | None = None  # position of the bonus draw, token emitted there
        sampler = round_sampler_for(settings.sampler, pair.width, settings.rule, settings.top_k_kept(pair.width))
        penalties = settings.penalties
        self._sampler: RoundSampler = (
            sampler if penalties.are_off else PenalizedSampler(sampler, penalties, prompt, pair.width)
        )

    @cached_property
    def _draft(self) -> RewindableCache:
        """Made when the draft is first asked."""
        return self._known_draft or new_cache(self._pair.draft, self._slack)

    def __iter__(self) -> Iterator[Round]:
        return (round_ for round_ in self.turns() if round_ is not None)

    def turns(self) -> Iterator[Round | None]:
        """The rounds, and None where it gives way while it reads the prompt, `prefill_step_size` tokens at a time."""
        for read in self._target.prefilling(self._prompt[:-1], self.settings.prefill_step_size):
            self.has_read_prompt = read == self._prompt.size - 1
            yield None
        self.has_read_prompt = True
        policy = self._draft_length
        while self.finish is None:
            count = self.settings.num_draft_tokens if policy is None else policy.choose()
            count = min(count, self.settings.num_draft_tokens, self.settings.max_tokens - self.emitted)
            most = self.settings.max_tokens if policy is None else policy.plain_steps()
            if count:
                yield from self._catch_up()
                count = min(count, self.settings.max_tokens - self.emitted)  # a batch may have gone on meanwhile
            rounds = [self._round(count)] if count else self._plain(min(most, self.most_plain_steps))
            for round_ in rounds:
                if policy is not None:
                    drafted = len(round_.proposals)
                    policy.observe(min(drafted, len(round_.tokens)) if self.finish else drafted, round_.accepted)
                yield round_

    def _catch_up(self) -> Iterator[None]:
        """Let the draft read what it lacks, the prompt at first, but for the last token; gives way in between."""
        step = self.settings.prefill_step_size
        if len(self._draft_lacks) > min(_ONE_PASS, max(step, 2)):  # two with a bonus token
            while len(self._draft_lacks) > 1:  # a batch may add tokens while it gives way
                part = self._draft_lacks[:-1][:step]
                self._draft.prefill(mx.array(part, mx.uint32), step)
                del self._draft_lacks[: len(part)]
                self._pending_bonus = None
                yield

    def complete_bonus_draws(self) -> None:
        """Complete `bonus_draws` after the end: one more pass of the draft if the last round was fully accepted."""
        if self._pending_bonus is None:
            return
        position, token = self._pending_bonus
        logits = self._draft.read(mx.array(self._draft_lacks, mx.uint32))
        self.bonus_draws[position] = self._sampler.bonus(logits[-2], token)
        self._pending_bonus, self._draft_lacks = None, []

    def _round(self, count: int) -> Round:
        """Draft `count` tokens (K, at least one), verify them, and keep what the acceptance rule keeps."""
        # 1. Draft: K passes of the draft, the first over all that its cache lacks (the prompt, then 1 or 2 tokens, more
        #    after plain steps). Each pass is enqueued while the one before it runs; nothing is read yet.
        self._sampler.begin(count)
        self._target.settle()
        self._draft.settle()
        logits = self._draft.read(mx.array(self._draft_lacks, mx.uint32))  # (M, V of the draft)
        bonus_token = None if self._pending_bonus is None else self._pending_bonus[1]
        drafted: list[mx.array] = []  # K of shape (1,)
        for i in range(count):
            if i:
                logits, bonus_token = self._draft.read(drafted[-1]), None  # (1, V)
            mx.async_eval(logits)  # it runs while the choice is put together
            drafted.append(self._sampler.propose(logits, bonus_token))
            mx.async_eval(drafted[-1])

        # 2. Verify: one pass of the target over the pending token and all proposals. Then the one synchronisation: it
        #    reads K + 2 tokens and 2K + 2 scalars, and the top-k tokens of the K + 1 rows where they are kept.
        tokens = mx.concatenate([mx.array([self._pending], mx.uint32), *drafted])  # (K + 1,)
        logits = self._target.read(tokens)  # (K + 1, V of the target)
        mx.async_eval(logits)  # it runs while the verification is put together
        verified = self._sampler.verify(logits)
        if self._pending_bonus is not None and verified.bonus is not None:
            self.bonus_draws[self._pending_bonus[0]] = verified.bonus

        # 3. Cut what was emitted, the accepted proposals and the token after them, at a stop token or `max_tokens`.
        proposals, log_p, log_q = verified.proposals, verified.log_p, verified.log_q
        emitted = [*proposals[: verified.accepted], verified.following][: self.settings.max_tokens - self.emitted]
        stop = next((i for i, token in enumerate(emitted) if token in self._pair.stop_tokens), None)
        if stop is not None:
            emitted = emitted[: stop + 1]
            self.finish = "stop"
        elif self.emitted + len(emitted) == self.settings.max_tokens:
            self.finish = "length"
        self._sampler.keep(emitted)
        emitted_count, accepted = len(emitted), min(verified.accepted, len(emitted))
        full = emitted_count > count  # everything was accepted, and a bonus token follows

        # 4. Describe the proposals that were verified: every accepted one, and the one that was rejected.
        same = zip(proposals[:accepted], log_p, log_q, strict=False)
        described = [VerifiedProposal(token, p, q, token, p, q) for token, p, q in same]
        if accepted < min(count, emitted_count):
            rejected = proposals[accepted], log_p[accepted], log_q[accepted]
            following = verified.following, verified.following_log_p, verified.following_log_q
            described.append(VerifiedProposal(*rejected, *following))
        round_ = Round(
            start=self.emitted,
            tokens=tuple(emitted),
            proposals=tuple(proposals),
            accepted=accepted,
            verified=tuple(described),
            bonus_log_p=verified.following_log_p if full else None,
            target_rows=verified.rows,
            logprobs=self._logprobs(logits, emitted),
        )

        # 5. Take back from both caches exactly what was not kept. The target's got K + 1 tokens, the draft's K - 1
        #    beside what it lacked: never the last proposal.
        self._target.rewind(count + 1 - emitted_count)
        self._draft.rewind(max(count - emitted_count, 0))

        # 6. Move on: the last token is pending, and after a full round the draft lacks the last proposal too.
        self._pending = emitted[-1]
        self._draft_lacks = emitted[-2:] if full else emitted[-1:]
        self._pending_bonus = (round_.start + count, self._pending) if full and self.settings.keep_bonus_draws else None
        self.emitted += emitted_count
        return round_

    def _logprobs(self, logits: mx.array, emitted: Sequence[int]) -> tuple[TokenLogprob, ...] | None:
        """What is reported of each emitted token, from the rows (M, V) before them."""
        most = self.settings.logprobs
        return None if most is None else token_logprobs(logits[: len(emitted), : self._pair.width], emitted, most)

    def _plain(self, most: int) -> Iterator[Round]:
        """Up to `most` plain steps of the target; each is enqueued before the one before it is read."""
        most = min(most, self.settings.max_tokens - self.emitted)
        following, logits = self._plain_step(mx.array([self._pending], mx.uint32))
        for left in reversed(range(most)):
            enqueued = self._plain_step(following) if left else None
            self.is_between = enqueued is None
            round_ = self.take(int(following.item()), logits)
            if self.finish == "stop" and enqueued is not None:
                self._target.rewind(1)
                self.is_between = True
            yield round_
            if enqueued is None or self.finish == "stop":
                return
            following, logits = enqueued

    def _plain_step(self, token: mx.array) -> tuple[mx.array, mx.array]:
        """The next token (1,), and the row (1, V) that it was drawn from; neither is evaluated."""
        self._target.settle()
        logits = self._target.read(token)
        following = self._sampler.following(logits)
        mx.async_eval(following)
        return following, logits

    def take(self, token: int, logits: mx.array) -> Round:
        """The round of a plain step that gave this token, drawn after the row `logits` (1, V)."""
        round_ = Round(self.emitted, (token,), (), 0, (), None, logprobs=self._logprobs(logits, [token]))
        self.emitted += 1
        self._pending = token
        self._draft_lacks.append(token)
        self._pending_bonus = None
        stops = token in self._pair.stop_tokens
        if stops or self.emitted == self.settings.max_tokens:
            self.finish = "stop" if stops else "length"
        return round_

    # What a batch of several outputs needs, between two turns of each -----------------------------------------------

    @property
    def pending(self) -> int:
        """The last token, which the target has not read."""
        return self._pending

    @property
    def target_cache(self) -> RewindableCache:
        """Of all tokens but the pending one, between two turns with no plain step enqueued."""
        return self._target

    @property
    def draft_cache(self) -> tuple[RewindableCache | None, int]:
        """The draft's, and how many of prompt and output it lacks; None where the draft was never asked."""
        asked = "_draft" in vars(self)
        return (self._draft if asked else self._known_draft), len(self._draft_lacks)

    def draw(self, logits: mx.array) -> mx.array:
        """The next token (1,), not evaluated, from the target's row (1, V); `take` has to be called with it."""
        return self._sampler.following(logits)


def slack_for(settings: Settings) -> int:
    """The most tokens that a cache has to take back: K of a round, one of a plain step."""
    return max(settings.num_draft_tokens, 1)


def count_rounds(rounds: Sequence[Round], length: int) -> tuple[tuple[int, int], ...]:
    """(drafted, accepted) of each round of an output of `length` tokens; proposals past its end count as nothing."""
    return tuple((min(len(round_.proposals), length - round_.start), round_.accepted) for round_ in rounds)


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
