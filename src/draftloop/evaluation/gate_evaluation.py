"""Put a candidate on trial: score it and the champion on the same texts, time both, decode a few for real. No verdicts.

texts -> log p, log q under both drafts (one pass of the target) -> expected rounds for K = 1 .. Kmax -> `gate.decide`.
What the gate would promote is then decoded live, and must take the rounds that the estimate says.
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
from ..decoding.decoder import Settings, fits
from ..decoding.draft_length import LatencyProfile
from ..decoding.teacher_forced import TargetOutput
from ..models.pair import Pair
from .estimator import expected_rounds, rounds_moments
from .gate import Decision, decide
from .latency import measure_latency
from .live_decoding import decode_all
from .paired_rounds import ScoredOutput
from .scoring import OutputScores, score, score_carried

CHAMPION, CANDIDATE = "champion", "candidate"
MOST_STANDARD_ERRORS = 4.0  # one honest candidate in 16,000 is above by chance
MOST_RELATIVE = 0.02  # in 16 bits a cached pass and a teacher-forced one round differently


Timing = Callable[[Pair, int], LatencyProfile]
OnWork = Callable[[str, int, int], None]
"""Told what is being done, how many pieces of it are done, and of how many; 0 where nobody knows."""


def ignore_work(_what: str, _done: int, _of: int) -> None:
    """Nobody wants to know how far it is."""


@dataclass(frozen=True)
class LiveCheck:
    """Real rounds of a few texts against what the estimate expects on those very texts."""

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
    """What the gate decided and everything that it rests on."""

    decision: Decision
    positions: dict[str, dict[str, float]]  # acceptance per position of both drafts by source, and over all
    costs: LatencyProfile
    live: LiveCheck | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        live = {**asdict(self.live), "agrees": self.live.agrees} if self.live else None
        found = {"acceptance_per_position": self.positions, "costs": asdict(self.costs), "live": live}
        return {**asdict(self.decision), **found}


def evaluate_gate(
    pair: Pair,
    records: Sequence[Record],
    champion: Path | None,
    candidate: Path | None,
    *,
    attempt: int,
    config: Config,
    seed: int,
    timing: Timing | None = None,
    group_of: GroupOf = own_group,
    on_work: OnWork = ignore_work,
) -> GateEvaluation:
    """Compare two drafts on the target's texts.

    Args:
        pair: the models; whatever adapter it carries is put off and on as needed.
        records: generations of this target that neither draft was trained on.
        champion, candidate: adapter directories; None is the bare draft.
        attempt: which look at these records it is, from 1.
        config: of gate and decoding.
        seed: of intervals, drawn signs and live decoding.
        timing: measures what a pair costs here, up to a K; by default `latency.measure_latency` does. Both drafts are
            given the costs of one that carries an adapter: its own overhead goes when it is fused, and must not keep a
            better draft out.
        group_of: the joined prompt group of a record.
        on_work: is told how far it is.
    """
    k = config.speculative.num_draft_tokens
    most = max(k, config.gate.max_draft_tokens)
    scored = _score(pair, records, {CHAMPION: champion, CANDIDATE: candidate}, config, most, group_of, on_work)
    costs = timing(pair, most) if timing else measure_latency(pair, most, on_timed=partial(on_work, "timing steps"))
    decision = decide(
        [text for text, _ in scored],
        num_draft_tokens=k,
        attempt=attempt,
        settings=config.gate,
        costs=costs,
        seed=seed,
    )
    live = None
    if decision.outcome == "promote" and config.gate.live_prompts:
        live = _decode(pair.with_adapter(candidate), _one_a_group(records, group_of), config, seed, on_work)
        decision = _held_against(live, decision)
    return GateEvaluation(decision, _positions(scored), costs, live)


def score_outputs(
    pair: Pair,
    records: Sequence[Record],
    champion: Path | None,
    candidate: Path | None,
    *,
    config: Config,
    most: int,
    group_of: GroupOf = own_group,
    on_work: OnWork = ignore_work,
) -> list[ScoredOutput]:
    """The expected rounds of both drafts on the target's texts.

    Args:
        pair: the models; whatever adapter it carries is put off and on as needed.
        records: generations of this target.
        champion, candidate: adapter directories; None is the bare draft.
        config: whose acceptance rule counts where the records' temperature lets it be.
        most: K up to which rounds are told.
        group_of: the joined prompt group of a record.
        on_work: is told how far it is.
    """
    drafts = {CHAMPION: champion, CANDIDATE: candidate}
    return [text for text, _ in _score(pair, records, drafts, config, most, group_of, on_work)]


_Positions = dict[str, float]  # by draft, the sum of `a` over a text


def _score(
    pair: Pair,
    records: Sequence[Record],
    drafts: dict[str, Path | None],
    config: Config,
    most: int,
    group_of: GroupOf,
    on_work: OnWork,
) -> list[tuple[ScoredOutput, _Positions]]:
    """Every text under both drafts, each under its own sampler and the rule that goes with it."""
    found, of, done = [], len(drafts) * len(records), count(1)
    on_work("scoring", 0, of)
    by_rule: dict[Rule, list[Record]] = {}
    for record in records:
        by_rule.setdefault(_rule(record, config), []).append(record)
    for rule, members in by_rule.items():
        texts = [TargetOutput.of(record) for record in members]
        scores = score(pair, texts, rule, drafts, lambda: on_work("scoring", next(done), of))
        for i, record in enumerate(members):
            own = {name: scores[name][i] for name in drafts}
            rounds = {name: _rounds(one, rule, most) for name, one in own.items()}
            text = ScoredOutput(
                group=group_of(record),
                source=record.source,
                tokens=len(record.target_output),
                champion_rounds=rounds[CHAMPION],
                candidate_rounds=rounds[CANDIDATE],
            )
            found.append((text, {name: float(one.position.sum()) for name, one in own.items()}))
    return found


def _rule(record: Record, config: Config) -> Rule:
    """The configured rule where the record's temperature lets it be."""
    if record.sampler.temperature == 0:
        return "greedy"
    wanted = config.speculative.rule
    return wanted if wanted in SAMPLING else "rejection"


def _rounds(scores: OutputScores, rule: Rule, most: int) -> tuple[float, ...]:
    return tuple(expected_rounds(scores.log_p, scores.log_q, rule, k).rounds for k in range(1, most + 1))


def _positions(scored: Sequence[tuple[ScoredOutput, _Positions]]) -> dict[str, dict[str, float]]:
    sources = sorted({text.source for text, _ in scored})
    found = {}
    for source in ["all", *sources]:
        members = [(text, sums) for text, sums in scored if source in ("all", text.source)]
        tokens = sum(text.tokens for text, _ in members)
        if tokens:
            found[source] = {name: sum(s[name] for _, s in members) / tokens for name in (CHAMPION, CANDIDATE)}
    return found


def _decode(pair: Pair, records: Sequence[Record], config: Config, seed: int, on_work: OnWork) -> LiveCheck | None:
    """Decode the first prompts that fit with the draft as it is; None where none does."""
    found: list[LiveCheck] = []
    for record in records:
        settings = Settings(
            sampler=replace(record.sampler, seed=seed),
            rule=_rule(record, config),
            num_draft_tokens=config.speculative.num_draft_tokens,
            max_tokens=config.speculative.max_tokens,
        )
        if len(found) < config.gate.live_prompts and fits(pair, len(record.prompt_tokens), settings):
            on_work("decoding", len(found), config.gate.live_prompts)
            found.append(_decode_one(pair, record, settings))
    if not found:
        return None
    return LiveCheck(
        prompts=len(found),
        tokens=sum(one.tokens for one in found),
        rounds=sum(one.rounds for one in found),
        expected_rounds=sum(one.expected_rounds for one in found),
        standard_error=math.sqrt(sum(one.standard_error**2 for one in found)),
    )


def _one_a_group(records: Sequence[Record], group_of: GroupOf) -> list[Record]:
    """The first record of each prompt group: copies of one prompt are no independent evidence."""
    return list({group_of(record): record for record in reversed(records)}.values())[::-1]


def _decode_one(pair: Pair, record: Record, settings: Settings) -> LiveCheck:
    decoded = decode_all(pair, [record.prompt_tokens], settings)
    scores = score_carried(pair, decoded.texts, settings.rule)[0]
    mean, variance = rounds_moments(scores.log_p, scores.log_q, settings.rule, settings.num_draft_tokens)
    made = decoded.outputs[0]
    return LiveCheck(1, made.tokens, int(made.rounds), mean, math.sqrt(variance))


def _held_against(live: LiveCheck | None, decision: Decision) -> Decision:
    if live is None:
        return replace(decision, reasons=(*decision.reasons, "no prompt was short enough to decode for real"))
    said = (
        f"decoded for real, {live.prompts} prompts took {live.rounds} rounds; the estimate says "
        f"{live.expected_rounds:.1f} with a standard error of {live.standard_error:.1f}"
    )
    if live.agrees:
        return replace(decision, reasons=(*decision.reasons, said))
    return replace(decision, outcome="refuse", reasons=(f"{said}: one of the two is wrong here",))
