"""What the gate needs of the target: scores of outputs, the latency profile, and a few prompts decoded live.

`LoadedTarget` has the target in this process. `LoggedTarget` does without: log p of what was emitted is in the records,
and the process that holds the target is asked for the rest. Both score drafts in this process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import ConfigDict

from ..config import Rule
from ..data.records import Number, Record, Sampler
from ..decoding.decoder import Decoding, Round, Settings, count_rounds
from ..decoding.draft_length import LatencyProfile
from ..decoding.generation import generation_seed
from ..decoding.teacher_forced import TargetGeneration
from ..errors import DraftloopError
from ..models.pair import Pair
from .estimator import FloatArray, log_probs, realised
from .latency import measure_latency
from .scoring import log_q_of, score, score_carried

Timing = Callable[[Pair, int], LatencyProfile]
OnTimed = Callable[[int, int], None]


@dataclass(frozen=True)
class DraftScores:
    """One output under one draft: log p and log q of its tokens, (N,) each, and the acceptances per position summed.

    `position_sum` is None where the target's whole distributions are not at hand.
    """

    log_p: FloatArray
    log_q: FloatArray
    position_sum: float | None


@dataclass(frozen=True, slots=True)
class LivePrompt:
    """A prompt to decode live: its tokens, and how. The sampler's seed is of this very output."""

    tokens: tuple[int, ...]
    sampler: Sampler
    rule: Rule
    num_draft_tokens: int
    max_tokens: int
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @property
    def settings(self) -> Settings:
        """Of the decoder."""
        return Settings(
            sampler=self.sampler,
            rule=self.rule,
            num_draft_tokens=self.num_draft_tokens,
            max_tokens=self.max_tokens,
            keep_bonus_draws=False,
        )


@dataclass(frozen=True, slots=True)
class LiveOutput:
    """What a live decoding emitted, log p of each token (None: no mass), and the rounds that it took."""

    tokens: tuple[int, ...]
    log_p: tuple[Number | None, ...]
    rounds: int
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class LiveScores:
    """Live rounds of an output, and what the estimate needs of it: log p and log q, (N,) each."""

    rounds: int
    log_p: FloatArray
    log_q: FloatArray


class TargetElsewhere(Protocol):
    """Whoever holds the target, and may be asked."""

    def latency(self, version: str | None, most: int) -> LatencyProfile:
        """The latency profile with a version on the draft, up to a K."""
        ...

    def decode(self, version: str | None, prompt: LivePrompt) -> LiveOutput:
        """Decode a prompt with a version on the draft."""
        ...


@dataclass(frozen=True)
class LoadedTarget:
    """The pair's own. `timing` measures the latency profile; None is `latency.measure_latency`."""

    timing: Timing | None = None

    def score(
        self,
        pair: Pair,
        records: Sequence[Record],
        rule: Rule,
        drafts: Mapping[str, Path | None],
        on_scored: Callable[[], None],
    ) -> dict[str, list[DraftScores]]:
        """The records under every draft, by its name, in one pass of the target; the pair's draft then has the last."""
        found = score(pair, [TargetGeneration.of(record) for record in records], rule, drafts, on_scored)
        return {
            name: [DraftScores(one.log_p, one.log_q, float(one.position.sum())) for one in scores]
            for name, scores in found.items()
        }

    def latency(self, pair: Pair, most: int, on_timed: OnTimed) -> LatencyProfile:
        """The latency profile of the pair with what its draft carries, up to K = `most`."""
        return self.timing(pair, most) if self.timing else measure_latency(pair, most, on_timed=on_timed)

    def decode(self, pair: Pair, prompt: LivePrompt) -> LiveScores:
        """Decode a prompt with the draft as it is, and score what was emitted in one more pass."""
        with pair.merged():
            output = live_output(list(Decoding(pair, prompt.tokens, prompt.settings)))
        scores = score_carried(pair, [TargetGeneration(prompt.tokens, output.tokens, prompt.sampler)], prompt.rule)[0]
        return LiveScores(output.rounds, scores.log_p, scores.log_q)


@dataclass(frozen=True)
class LoggedTarget:
    """What records hold of the target; for the rest whoever has it is `elsewhere`, None where nothing else is needed.

    Whole distributions are not at hand, so there is no acceptance per position; a live output is scored by the log p of
    its own decoding.
    """

    elsewhere: TargetElsewhere | None = None

    def score(
        self,
        pair: Pair,
        records: Sequence[Record],
        rule: Rule,  # noqa: ARG002 - log p and log q are the same under every rule
        drafts: Mapping[str, Path | None],
        on_scored: Callable[[], None],
    ) -> dict[str, list[DraftScores]]:
        """As of a loaded target, but by passes of the drafts alone."""
        found = log_q_of(pair, [TargetGeneration.of(record) for record in records], drafts, on_scored)
        known = [log_probs(record.log_p) for record in records]
        return {
            name: [DraftScores(log_p, log_q, None) for log_p, log_q in zip(known, columns, strict=True)]
            for name, columns in found.items()
        }

    def latency(self, pair: Pair, most: int, on_timed: OnTimed) -> LatencyProfile:
        """As whoever has the target knows it, or measures it now."""
        on_timed(0, 0)
        return self._asked().latency(pair.adapter, most)

    def decode(self, pair: Pair, prompt: LivePrompt) -> LiveScores:
        """Decoded where the target is."""
        output = self._asked().decode(pair.adapter, prompt)
        generation = TargetGeneration(prompt.tokens, output.tokens, prompt.sampler)
        carried: dict[str, Any] = {"": lambda: pair.draft}
        (log_q,) = log_q_of(pair, [generation], carried)[""]
        return LiveScores(output.rounds, log_probs(output.log_p), log_q)

    def _asked(self) -> TargetElsewhere:
        if self.elsewhere is None:
            raise DraftloopError("the target is not loaded here, and nobody who has it can be asked")
        return self.elsewhere


GateTarget = LoadedTarget | LoggedTarget


def live_output(rounds: Sequence[Round]) -> LiveOutput:
    """The output of a live decoding, from all of its rounds."""
    tokens = tuple(token for round_ in rounds for token in round_.tokens)
    log_p = [
        value
        for round_ in rounds
        for value in (*(proposal.token_log_p for proposal in round_.verified), round_.bonus_log_p)
        if value is not None
    ]
    made = realised(count_rounds(rounds, len(tokens)), len(tokens))
    return LiveOutput(tokens, tuple(None if value == -math.inf else value for value in log_p), int(made.rounds))


def own_seed(sampler: Sampler, seed: int, tokens: Sequence[int]) -> Sampler:
    """A sampler with the seed that a prompt has in a run of this seed."""
    return replace(sampler, seed=generation_seed(seed, tokens))
