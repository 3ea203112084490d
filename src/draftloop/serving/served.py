"""The pair that is served and how its outputs are decoded where a request leaves it open. Knows no request's text."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from ..config import Config, Rule, Speculative
from ..data.records import Sampler
from ..decoding.acceptance_rules import rule_for
from ..decoding.decoder import Settings
from ..decoding.draft_length import AdaptiveDraftLength, Experience, LatencyProfile
from ..evaluation.latency import QUICK, machine_fingerprint, measure_latency
from ..evaluation.latency_profiles import LatencyProfiles
from ..models.pair import Pair
from ..runtime.memory import budget, read_device, room_left
from .asked import Asked
from .room import Room

UNBOUNDED = 32_768  # tokens of an answer, where neither the models nor the request say how many
_LONGEST_PROMPT = 1 << 20  # tokens, where the models do not say how many they hold
_SEEDS = 1 << 31


@dataclass
class Served:
    """A pair, and what is known of it on this machine.

    Attributes:
        pair: the draft with the adapter in use.
        speculative: the configuration.
        profiles: latencies, by whether the temperature is 0; without one a round drafts as many as configured.
        rule: the acceptance rule above temperature 0.
        room: bytes for the caches of requests; None is without bound.
        teacher_top_k: kept of the target's distributions with what is captured.
        experience: acceptance by depth under each rule at the start; requests go on from it and share what they learn.
        measured: the keys of `profiles` among all that are known (`latency.machine_fingerprint`).
    """

    pair: Pair
    speculative: Speculative
    profiles: dict[bool, LatencyProfile]
    rule: Rule
    room: Room | None = None
    teacher_top_k: int = 0
    experience: dict[Rule, Experience] = field(default_factory=dict)
    measured: dict[bool, str] = field(default_factory=dict)
    _policies: dict[Rule, AdaptiveDraftLength] = field(default_factory=dict)

    def with_pair(self, pair: Pair) -> Served:
        """The same with another adapter on the draft; of its acceptance nothing is known yet."""
        return replace(self, pair=pair, experience={}, _policies={})

    def settings(self, asked: Asked, prompt_tokens: int, *, captured: bool) -> Settings:
        """How a request is decoded."""
        greedy = asked.temperature == 0
        seed = secrets.randbelow(_SEEDS) if asked.seed is None else asked.seed
        sampler = Sampler(float(asked.temperature), float(asked.top_p), float(asked.min_p), asked.top_k, seed)
        drafts = self._drafts(asked)
        return Settings(
            sampler=sampler,
            rule="greedy" if greedy else rule_for(asked.rule or self.rule, asked.temperature),
            num_draft_tokens=drafts,
            max_tokens=self.longest(asked, prompt_tokens),
            prefill_step_size=self.speculative.prefill_step_size,
            teacher_top_k=self.teacher_top_k if captured else 0,
            keep_bonus_draws=captured,
            penalties=asked.penalties,
            logprobs=asked.top_logprobs,
        )

    def draft_length(self, asked: Asked, settings: Settings) -> AdaptiveDraftLength | None:
        """What chooses K round by round; None where the request says it, or nothing was measured."""
        profile = self.profiles.get(asked.temperature == 0)
        if asked.num_draft_tokens is not None or profile is None:
            return None
        if settings.rule not in self._policies:
            before = self.experience.get(settings.rule, Experience())
            self._policies[settings.rule] = AdaptiveDraftLength(profile, settings.num_draft_tokens, before)
        return self._policies[settings.rule]

    def learned(self) -> dict[Rule, Experience]:
        """What requests have shown so far, under each rule that there was."""
        return {rule: policy.experience for rule, policy in self._policies.items()}

    def longest(self, asked: Asked, prompt_tokens: int) -> int:
        """Tokens of an answer at most: as many as were asked for and fit; where it was left open, all that fit."""
        most = UNBOUNDED
        if self.pair.context is not None:
            most = max(1, self.pair.context - prompt_tokens - self._drafts(asked) - 1)
        if asked.max_tokens is not None:
            return min(asked.max_tokens, most) if self.pair.context is not None else asked.max_tokens
        return most if self.room is None else self.room.open_answer(prompt_tokens, most)

    def longest_prompt(self, asked: Asked) -> int:
        """Tokens of a prompt at most: behind it a token of an answer has to fit, and a round."""
        if self.pair.context is None:
            return _LONGEST_PROMPT
        return max(0, self.pair.context - self._drafts(asked) - 2)  # as `decoder.check_length` counts

    def _drafts(self, asked: Asked) -> int:
        """K at most."""
        if asked.num_draft_tokens is not None:
            return asked.num_draft_tokens
        adaptive = (asked.temperature == 0) in self.profiles
        return self.speculative.max_draft_tokens if adaptive else self.speculative.num_draft_tokens


def reader_of(pair: Pair) -> str:
    """What reads the draft's prompt caches: it, for a self-draft may get other layers, and its adapter."""
    return f"draft {pair.identity.draft} {pair.adapter or 'bare'}"


def serve_pair(pair: Pair, config: Config, costs: LatencyProfiles, say: Callable[[str], None]) -> Served:
    """A pair with what is known of it on this machine; latencies that are not known yet are measured, and kept.

    Args:
        pair: just loaded.
        config: of everything.
        costs: what is known of pairs.
        say: told what takes time.
    """
    speculative, profiles = config.speculative, dict[bool, LatencyProfile]()
    rule: Rule = rule_for(speculative.rule, 1.0)
    experience: dict[Rule, Experience] = {}
    measured: dict[bool, str] = {}
    if speculative.draft_length == "auto":
        for greedy in (True, False):
            key, most = machine_fingerprint(pair, greedy=greedy), speculative.max_draft_tokens
            measure = partial(measure_latency, pair, most, QUICK, greedy=greedy)
            known = costs.of_or_measured(key, most, measure, say)
            profiles[greedy], measured[greedy] = known.costs, key
            experience |= known.experience
            if speculative.rule == "auto" and not greedy and known.advice is not None and known.advice.rule:
                rule = known.advice.rule
    room = Room.of(pair, room_left(budget("auto", read_device())), config.serve.max_concurrent)
    return Served(pair, speculative, profiles, rule, room, config.data.teacher_top_k, experience, measured)
