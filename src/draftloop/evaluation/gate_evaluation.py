"""Gate evaluation: score candidate and champion on the same outputs, and let `gate.decide` decide. Moves no pointer.

outputs -> log p, log q under both drafts (`gate_target`) -> expected rounds for K = 1 .. Kmax -> decision.
A candidate that `decide` would promote then decodes some prompts live. Where its rounds are not those of the estimate
it is refused all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from ..config import SAMPLING, Config, Rule
from ..data.records import GroupOf, Record, own_group
from ..decoding.decoder import fits
from ..decoding.draft_length import LatencyProfile
from ..models.pair import Pair
from .estimator import expected_rounds, rounds_moments
from .gate import Decision, decide
from .gate_target import GateTarget, LivePrompt, LoadedTarget, own_seed
from .paired_rounds import ScoredOutput

CHAMPION, CANDIDATE = "champion", "candidate"
MOST_STANDARD_ERRORS = 4.0  # one honest candidate in 16,000 is above by chance
MOST_RELATIVE = 0.02  # in 16 bits a cached pass and a teacher-forced one round differently

OnWork = Callable[[str, int, int], None]
"""Called with what is being done, how many pieces of it are done, and of how many; 0 where that is unknown."""


def ignore_work(_what: str, _done: int, _of: int) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class LiveCheck:
    """Real rounds of a few outputs against what the estimate expects on those very outputs."""

    prompts: int
    tokens: int
    rounds: int
    expected_rounds: float
    standard_error: float

    @property
    def agrees(self) -> bool:
        """Whether they differ by no more than chance and rounding explain."""
        off = abs(self.rounds - self.expected_rounds)
        return off <= MOST_STANDARD_ERRORS * self.standard_error + MOST_RELATIVE * self.expected_rounds


@dataclass(frozen=True)
class GateEvaluation:
    """The gate's decision, and everything that it rests on."""

    decision: Decision
    positions: dict[str, dict[str, float]]  # acceptance per position of both drafts by source, where it was measured
    profile: LatencyProfile
    live: LiveCheck | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        live = {**asdict(self.live), "agrees": self.live.agrees} if self.live else None
        basis = {"acceptance_per_position": self.positions, "costs": asdict(self.profile), "live": live}
        return {**asdict(self.decision), **basis}


def evaluate_gate(
    pair: Pair,
    records: Sequence[Record],
    champion: Path | None,
    candidate: Path | None,
    *,
    attempt: int,
    config: Config,
    seed: int,
    target: GateTarget | None = None,
    group_of: GroupOf = own_group,
    on_work: OnWork = ignore_work,
) -> GateEvaluation:
    """Evaluate a candidate against the champion on outputs of the target.

    Args:
        pair: the models; whatever adapter it carries is put off and on as needed.
        records: generations of this target that neither draft was trained on.
        champion, candidate: adapter directories; None is the bare draft.
        attempt: which attempt at these records it is, from 1.
        config: of gate and decoding.
        seed: of intervals, drawn signs and live decoding.
        target: scores, times and decodes; by default the pair's own. Both drafts are given the latency profile of one
            that carries an adapter: its own overhead goes when it is fused, and must not keep a better draft out.
        group_of: the joined prompt group of a record.
        on_work: called with the progress.
    """
    # 1. Score both drafts on the same outputs.
    target = target or LoadedTarget()
    k = config.speculative.num_draft_tokens
    most = max(k, config.gate.max_draft_tokens)
    outputs = score_outputs(
        pair, records, champion, candidate, config=config, most=most, target=target, group_of=group_of, on_work=on_work
    )

    # 2. Measure the latency profile of this machine, and decide.
    profile = target.latency(pair.with_adapter(candidate), most, partial(on_work, "timing steps"))
    decision = decide(outputs, num_draft_tokens=k, attempt=attempt, settings=config.gate, profile=profile, seed=seed)

    # 3. Decode live with a candidate that would be promoted: one prompt per group, for copies prove nothing more.
    live = None
    if decision.outcome == "promote" and config.gate.live_prompts:
        one_a_group = list({group_of(record): record for record in reversed(records)}.values())[::-1]
        live = _decode(target, pair.with_adapter(candidate), one_a_group, config, seed, on_work)
        if live is None:
            sentence, agrees = "no prompt was short enough to decode for real", True
        else:
            agrees = live.agrees
            sentence = (
                f"decoded for real, {live.prompts} prompts took {live.rounds} rounds; the estimate says "
                f"{live.expected_rounds:.1f} with a standard error of {live.standard_error:.1f}"
            )
        if agrees:
            decision = replace(decision, reasons=(*decision.reasons, sentence))
        else:
            reasons = (f"{sentence}: one of the two is wrong here",)
            decision = replace(decision, outcome="refuse", reasons=reasons)
    return GateEvaluation(decision, _positions(outputs), profile, live)


def _positions(outputs: Sequence[ScoredOutput]) -> dict[str, dict[str, float]]:
    """The acceptance per position of both drafts by source, and over `all`; empty where it was not measured."""
    found = {}
    for source in ["all", *sorted({output.source for output in outputs})]:
        members = [output for output in outputs if source in ("all", output.source)]
        tokens, sums = sum(output.tokens for output in members), [output.position_sums for output in members]
        known = [one for one in sums if one is not None]
        if tokens and len(known) == len(sums):
            means = (sum(values) / tokens for values in zip(*known, strict=True))
            found[source] = dict(zip((CHAMPION, CANDIDATE), means, strict=True))
    return found


def score_outputs(
    pair: Pair,
    records: Sequence[Record],
    champion: Path | None,
    candidate: Path | None,
    *,
    config: Config,
    most: int,
    target: GateTarget | None = None,
    group_of: GroupOf = own_group,
    on_work: OnWork = ignore_work,
) -> list[ScoredOutput]:
    """The expected rounds of both drafts on outputs of the target.

    Args:
        pair: the models; whatever adapter it carries is put off and on as needed.
        records: generations of this target.
        champion, candidate: adapter directories; None is the bare draft.
        config: its acceptance rule is used where it fits the records' temperature.
        most: the greatest K.
        target: scores; by default the pair's own.
        group_of: the joined prompt group of a record.
        on_work: called with the progress.
    """
    drafts = {CHAMPION: champion, CANDIDATE: candidate}
    outputs, of, done = [], len(drafts) * len(records), count(1)
    on_work("scoring", 0, of)
    by_rule: dict[Rule, list[Record]] = {}  # each output under its own sampler and the rule that goes with it
    for record in records:
        by_rule.setdefault(_rule(record, config), []).append(record)
    for rule, members in by_rule.items():
        scores = (target or LoadedTarget()).score(
            pair, members, rule, drafts, lambda: on_work("scoring", next(done), of)
        )
        for record, *own in zip(members, scores[CHAMPION], scores[CANDIDATE], strict=True):
            before, after = (
                tuple(expected_rounds(one.log_p, one.log_q, rule, k).rounds for k in range(1, most + 1)) for one in own
            )
            sums = [one.position_sum for one in own if one.position_sum is not None]
            positions = (sums[0], sums[1]) if len(sums) == len(own) else None
            outputs.append(
                ScoredOutput(group_of(record), record.source, len(record.target_output), before, after, positions)
            )
    return outputs


def _rule(record: Record, config: Config) -> Rule:
    """The configured rule where it fits the record's temperature, else the rule that does."""
    if record.sampler.temperature == 0:
        return "greedy"
    wanted = config.speculative.rule
    return wanted if wanted in SAMPLING else "rejection"


def _decode(
    target: GateTarget, pair: Pair, records: Sequence[Record], config: Config, seed: int, on_work: OnWork
) -> LiveCheck | None:
    """Decode the first prompts that fit with the draft as it is, and sum what follows; None where none fits."""
    checks: list[LiveCheck] = []
    for record in records:
        prompt = LivePrompt(
            tokens=record.prompt_tokens,
            sampler=own_seed(record.sampler, seed, record.prompt_tokens),
            rule=_rule(record, config),
            num_draft_tokens=config.speculative.num_draft_tokens,
            max_tokens=config.speculative.max_tokens,
        )
        if len(checks) < config.gate.live_prompts and fits(pair, len(prompt.tokens), prompt.settings):
            on_work("decoding", len(checks), config.gate.live_prompts)
            live = target.decode(pair, prompt)
            mean, variance = rounds_moments(live.log_p, live.log_q, prompt.rule, prompt.num_draft_tokens)
            checks.append(LiveCheck(1, len(live.log_p), live.rounds, mean, math.sqrt(variance)))
    if not checks:
        return None
    return LiveCheck(
        prompts=len(checks),
        tokens=sum(check.tokens for check in checks),
        rounds=sum(check.rounds for check in checks),
        expected_rounds=sum(check.expected_rounds for check in checks),
        standard_error=math.sqrt(sum(check.standard_error**2 for check in checks)),
    )
