"""The record of one finished generation: tokens, rejections, log-probabilities, conditions. Knows no file or model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from ..config import Rule
from ..store.sealed_lines import dump
from .prompt_groups import opening, prompt_group

SCHEMA = 1

Split = Literal["train", "validation", "heldout"]
Finish = Literal["stop", "length", "cancelled"]

Count = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Text = Annotated[str, Field(strict=True)]
Truth = Annotated[bool, Field(strict=True)]
_CLOSED = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Sampler:
    """How one generation was sampled, in mlx-lm's names. `seed` is the seed of this very generation."""

    temperature: Number
    top_p: Number
    min_p: Number
    top_k: Count
    seed: Count
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A rejected draft token and the token emitted in its place.

    For each of the two tokens: log p (target) and log q (draft), None where the sampler's transforms leave no mass.
    """

    position: Count
    draft_token: Count
    target_token: Count
    draft_logp: Number | None
    draft_logq: Number | None
    target_logp: Number | None
    target_logq: Number | None
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True)
class PairId:
    """The fingerprints of a target, a draft and their one tokenizer."""

    target: Text
    draft: Text
    tokenizer: Text
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True)
class BlobRef:
    """Where the teacher's distributions of a record lie in the blob file, in bytes."""

    offset: Count
    length: Count
    checksum: Text
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True)
class RunConditions:
    """The conditions under which a prompt is collected at most once. `run_seed` counts, `sampler.seed` does not."""

    pair: PairId
    adapter: str | None
    sampler: Sampler
    run_seed: int
    num_draft_tokens: int
    rule: Rule
    chat_template_args: dict[str, Any] | None = None

    def resume_key(self, prompt_tokens: Iterable[int]) -> str:
        """The key by which a resumed run knows that these prompt tokens were already collected."""
        s = self.sampler
        transforms = [float(s.temperature), float(s.top_p), float(s.min_p), s.top_k]
        run: list[Any] = [self.pair, self.adapter, transforms, self.run_seed, self.num_draft_tokens, self.rule]
        run += [self.chat_template_args] if self.chat_template_args else []  # omitted when empty, as in older keys
        return hashlib.sha256(dump([list(prompt_tokens), run])).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One finished generation: tokens, N of them in the output, an end-of-text token included.

    Attributes:
        id: 32 hex digits; a hash of what was generated, so that a repeated run has the same ids.
        prompt: its text; of a chat, of all messages.
        draft_output: N tokens, what the draft proposed at each position given the emitted prefix.
        target_output: N tokens, what was emitted.
        disagreements: the rejections of the verification, one for every round that rejected, in order.
        num_draft_tokens: the most proposals of a round (K).
        rounds: (drafted, accepted) each; a round that starts i tokens into the output drafts at most min(K, N - i).
        log_p, log_q: N values each, of the emitted tokens under target and draft; None where there is no mass.
        finish: `stop` at a stop token, `length` at a limit on tokens; `cancelled` where nobody wanted more: the output
            is then a beginning of what the target would have written, and ends with a round of its own draft.
        adapter: the draft's adapter version, None for the bare draft.
        time: unix seconds.
        run_seed: the seed of the run that collected it (`sampler.seed` is derived from it).
        teacher: the place of the teacher's distributions, None until there is one.
        messages: of a chat, as they were given, but for lone surrogates (U+FFFD in their places); None, and no member
            of the line, for plain text.
        tools: the ones that the chat's assistant might call, likewise; None, and no member, where there were none.
        chat_template_args: what else the chat template was given; None, and no member, where it was nothing.
        simulated: whether the rounds were simulated offline on what the target wrote by itself; no member where they
            happened, nor in records of before there was such a mark.
    """

    id: Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{32}$")]
    prompt: Text
    prompt_tokens: tuple[Count, ...]
    draft_output: tuple[Count, ...]
    target_output: tuple[Count, ...]
    disagreements: tuple[Disagreement, ...]
    sampler: Sampler
    rule: Rule
    num_draft_tokens: Count
    rounds: tuple[tuple[Count, Count], ...]
    log_p: tuple[Number | None, ...]
    log_q: tuple[Number | None, ...]
    finish: Finish
    pair: PairId
    adapter: Text | None
    split: Split
    source: Text
    time: Number
    run_seed: Count
    teacher: BlobRef | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    chat_template_args: dict[str, Any] | None = None
    simulated: Truth = False
    schema: Literal[1] = 1
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    @property
    def is_cut(self) -> bool:
        """Whether the target would have gone on: the output ended at a limit, or nobody wanted more."""
        return self.finish != "stop"

    @property
    def is_failure(self) -> bool:
        """Whether at least one draft token was rejected."""
        return bool(self.disagreements)

    @property
    def opening(self) -> str:
        """The text that decides the prompt group: of a chat, the user turn that the conversation began with."""
        return opening(self.prompt, self.messages)

    @property
    def group(self) -> str:
        """The prompt group by itself; what is near to it is joined with it by the log's `groups`."""
        return prompt_group(self.opening)

    @property
    def conditions(self) -> RunConditions:
        """The conditions that it was collected under."""
        return RunConditions(
            pair=self.pair,
            adapter=self.adapter,
            sampler=self.sampler,
            run_seed=self.run_seed,
            num_draft_tokens=self.num_draft_tokens,
            rule=self.rule,
            chat_template_args=self.chat_template_args,
        )


GroupOf = Callable[[Record], str]
"""The prompt group of a record: `groups().group_of` of the log that holds it, which joins near-duplicates."""


def own_group(record: Record) -> str:
    """The group of a record by itself, where no log is at hand."""
    return record.group


def resume_key(record: Record) -> str:
    """The key under which `record` was collected; equal to `RunConditions.resume_key` of its run."""
    return record.conditions.resume_key(record.prompt_tokens)
