"""The judging of an unattended run: a candidate by the gate, the champion after an alarm, and what comes of it.

A verdict is written down before the pointer moves: what a crash cuts off in between is finished by the next run.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

from ..config import Config
from ..data.records import GroupOf, PairId, Record, own_group
from ..data.replay import reservoir
from ..errors import AdapterError, ChampionMoved
from ..evaluation.looks import Look, LookResult, compare_with_previous, describe_look
from ..models.adapter_format import CONFIG, WEIGHTS
from ..registry.registry import Pointer, Registry
from ..registry.verdicts import Attempt, Epoch, Verdict
from .work import Work

if TYPE_CHECKING:
    from ..evaluation.gate_evaluation import GateEvaluation

Judgement = Literal["promoted", "refused"]
Unscored = Literal["refused", "discarded"]


def finish_promotion(work: Work, version: str, why: str, pointer: Pointer) -> None:
    """Make the promotion that a crash cut off."""
    try:
        moved = work.data.registry.promote(version, why, pointer.sequence)
    except AdapterError as error:
        given = work.data.verdicts.of(version)
        assert given is not None  # it said `promoted` when the situation was looked at, under this lock
        why = f"it passed the gate and was damaged since: {error}"
        work.data.verdicts.give(replace(given, outcome="discarded", reasons=(why,)))
        work.outcome.end("refused", why, version)
        return
    work.watch(moved)
    work.outcome.end("promoted", why, version)


def gate_candidate(work: Work, version: str, pointer: Pointer) -> None:
    """Hold a candidate against the champion, and promote or refuse it."""
    unscored = _without_scores(work.data.registry, version)
    if unscored is not None:
        outcome, why = unscored
        work.data.verdicts.give(_verdict(work, version, pointer, outcome, (why,)))
        work.outcome.end("refused", why, version)
        return
    pair = work.pair(pointer)
    seen = {one.id for one in work.stream}  # what is logged while it is judged is new to it, and kept for the looks
    records = {record.id: record for record in work.records(pair, {"heldout"}) if record.id in seen}
    most, group_of = work.config.gate.max_heldout_generations, work.data.log.groups().group_of
    prompts, least = len({group_of(record) for record in records.values()}), work.config.gate.min_heldout_prompts
    if prompts < least:  # more were counted before the pair was loaded
        why = f"of {version}'s held-out prompts this pair can be judged on {prompts}, and the gate wants {least}"
        work.outcome.end("inconclusive", why, version)
        return
    epoch, attempt = work.data.verdicts.open_attempt(
        _attempt(work.data.registry, version, pointer.champion),
        pair.identity,
        work.config.gate,
        {record.id: group_of(record) for record in records.values()},
        lambda number: heldout_sample(records.values(), most, number, group_of),
    )
    work.say(f"scoring {len(epoch.record_ids)} held-out generations: attempt {attempt} of epoch {epoch.number}")
    texts = [records[record_id] for record_id in epoch.record_ids]
    trial = _hold_trial(work, texts, pointer, (pointer.champion, version), attempt, epoch.fixed)
    _settle(work, trial, version, pointer, epoch, attempt)


def check_champion(work: Work, why: str, pointer: Pointer, looks: Sequence[Look]) -> None:
    """Make the looks at the champion that are due, and roll back where the draft before it proves better."""
    registry = work.data.registry
    work.outcome.checked = pointer.sequence
    if pointer.previous is not None:
        try:
            registry.verify(registry.root / pointer.previous)
        except AdapterError as error:
            work.say(f"{pointer.champion} stays: there is nothing to go back to: {error}")
            return
    watching = work.data.promotion_watch.of(pointer)
    assert watching is not None  # the looks come from it
    for look in looks:
        work.say(f"scoring {pointer.champion} and the draft before it on {look.groups} new held-out prompts")
        watching = work.data.promotion_watch.note_begun(watching, look)
        found = _look(work, look, pointer)
        if found is not None and found.rolls_back:
            _roll_back(work, f"{why}; {describe_look(look, found, work.config.gate)}", pointer, look, found)
            return
        watching = work.data.promotion_watch.note_done(watching, look, found.p_value if found else 1.0)
        said = describe_look(look, found, work.config.gate) if found else "none of what it is to be seen on is left"
        work.say(f"{pointer.champion} stays: {said}")


def _look(work: Work, look: Look, pointer: Pointer) -> LookResult | None:
    """Score what a look is to be made on, under both drafts; None where nothing of it is left."""
    from ..evaluation.gate_evaluation import ignore_work, score_outputs

    pair, wanted = work.pair(pointer), set(look.record_ids)
    records = {record.id: record for record in work.records(pair, {"heldout"}) if record.id in wanted}
    group_of = work.data.log.groups().group_of
    sample = heldout_sample(records.values(), work.config.gate.max_heldout_generations, pointer.sequence, group_of)
    if not sample:
        return None
    k = work.config.speculative.num_draft_tokens
    texts = score_outputs(
        pair,
        [records[record_id] for record_id in sample],
        work.directory(pointer.champion),
        work.directory(pointer.previous),
        config=work.config,
        most=k,
        group_of=group_of,
        on_work=work.on_work or ignore_work,
    )
    return compare_with_previous(texts, k, look, work.config.gate, work.config.training.seed)


def _roll_back(work: Work, why: str, pointer: Pointer, look: Look, found: LookResult) -> None:
    work.data.registry.rollback(why, pointer.sequence)
    conditions = _conditions(work.config, work.pair(pointer).identity)
    work.outcome.numbers = {"look": {**asdict(look), "record_ids": []}, **asdict(found), "conditions": conditions}
    work.outcome.end("rolled back", why, pointer.champion)


def heldout_sample(records: Iterable[Record], most: int, seed: int, group_of: GroupOf = own_group) -> list[str]:
    """Ids of at most so many records: one of as many prompt groups as there are, then others.

    Args:
        records: held-out ones.
        most: how many.
        seed: of the draw; every source is in it in proportion.
        group_of: the joined prompt group of a record.
    """
    by_group: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_group[group_of(record)].append(record)
    chosen = reservoir((members[0] for members in by_group.values()), most, seed)
    others = (record for members in by_group.values() for record in members[1:])
    chosen += reservoir(others, most - len(chosen), seed)
    return [record.id for record in chosen]


def _without_scores(registry: Registry, version: str) -> tuple[Unscored, str] | None:
    """What becomes of a candidate whatever its scores, and why, so that none are taken and nothing is spent."""
    try:
        registry.verify(registry.root / version)
    except AdapterError as error:
        return "discarded", f"it is damaged: {error}"
    manifest, rolled_back = registry.manifest(version), registry.rolled_back()
    if version in rolled_back:
        return "refused", "it was rolled back before"
    if manifest.parent in rolled_back:
        return "discarded", f"{manifest.parent}, on top of which it was trained, was rolled back since"
    if manifest.metrics.get("best_step") == 0:
        return "refused", "no later weights did better on validation than those it started from"
    return None


def _attempt(registry: Registry, version: str, champion: str | None) -> Attempt:
    def files(name: str) -> str:
        found = registry.manifest(name).files
        return hashlib.sha256("".join(found[file].sha256 for file in (WEIGHTS, CONFIG)).encode()).hexdigest()

    return Attempt(version, champion, files(version), files(champion) if champion else None)


def _hold_trial(
    work: Work,
    records: list[Record],
    pointer: Pointer,
    versions: tuple[str | None, str | None],
    attempt: int,
    fixed: Mapping[str, Any],
) -> GateEvaluation:
    """Compare two versions, first the one in place, on texts of the target, with some of the gate's settings fixed."""
    from ..evaluation.gate_evaluation import evaluate_gate, ignore_work

    gate = work.config.gate.model_copy(update=fixed)
    return evaluate_gate(
        work.pair(pointer),
        records,
        *map(work.directory, versions),
        attempt=attempt,
        config=work.config.model_copy(update={"gate": gate}),
        seed=work.config.training.seed + attempt,
        timing=work.timing,
        group_of=work.data.log.groups().group_of,
        on_work=work.on_work or ignore_work,
    )


def _settle(work: Work, trial: GateEvaluation, version: str, pointer: Pointer, epoch: Epoch, attempt: int) -> None:
    """Write the verdict down, then act on it, if the champion is still the one that was compared with."""
    decision, reasons = trial.decision, "; ".join(trial.decision.reasons)
    work.outcome.numbers = trial.to_json()
    if decision.outcome == "inconclusive":
        work.outcome.end("inconclusive", reasons, version)
        return
    said: Judgement = "promoted" if decision.outcome == "promote" else "refused"
    numbers = {**trial.to_json(), "conditions": _conditions(work.config, epoch.pair), "epoch": epoch.fixed}
    verdict = _verdict(work, version, pointer, said, decision.reasons, epoch, attempt, numbers)
    try:
        work.data.registry.expect(pointer.sequence)
        work.data.verdicts.give(verdict)
        if said == "promoted":
            _promote(work, version, reasons, pointer)
    except ChampionMoved as moved:
        work.outcome.end("inconclusive", f"{moved}. Nothing was decided about {version}", version)
        return
    work.outcome.end(said, reasons, version)


def _promote(work: Work, version: str, why: str, pointer: Pointer) -> None:
    """Move the pointer; where somebody was quicker, the version is a candidate again."""
    try:
        moved = work.data.registry.promote(version, why, pointer.sequence)
    except ChampionMoved:
        work.data.verdicts.withdraw(version)
        raise
    work.watch(moved)


def _verdict(
    work: Work,
    version: str,
    pointer: Pointer,
    outcome: Judgement | Unscored,
    reasons: tuple[str, ...],
    epoch: Epoch | None = None,
    attempt: int = 0,
    numbers: dict[str, Any] | None = None,
) -> Verdict:
    return Verdict(
        version=version,
        champion=pointer.champion,
        outcome=outcome,
        reasons=reasons,
        epoch=epoch.number if epoch else 0,
        attempt=attempt,
        pointer=pointer.sequence,
        when=work.clock(),
        pair=epoch.pair if epoch else None,
        numbers=numbers or {},
    )


def _conditions(config: Config, pair: PairId) -> dict[str, Any]:
    return {
        "pair": asdict(pair),
        "rule": config.speculative.rule,
        "num_draft_tokens": config.speculative.num_draft_tokens,
        "gate": config.gate.model_dump(),
    }
