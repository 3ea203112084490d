"""The gate step of `retrain`: promote or refuse a candidate, test the champion again, and roll it back if it is worse.

`gate_candidate` has both drafts scored on held-out outputs: `evaluation.gate.decide` decides, the live check of
`evaluation.gate_evaluation` may still refuse, `gate_step` writes the verdict down, and `Registry._move` moves the
pointer. Where a crash comes between the last two, the next run moves it (`finish_promotion`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

from ..config import Config
from ..data.log_position import is_gone
from ..data.records import GroupOf, PairId, Record, own_group
from ..data.replay import reservoir
from ..data_directory import DataDirectory
from ..errors import AdapterError, ChampionMoved
from ..evaluation.looks import Look, LookResult, compare_with_previous, describe_look
from ..models.adapter_format import CONFIG, WEIGHTS
from ..models.hub import local_fingerprints
from ..registry.registry import Pointer, Registry
from ..registry.verdicts import Attempt, Verdict, VerdictOutcome
from ..status import read_overview
from .facts import Facts, History
from .work import Work

if TYPE_CHECKING:
    from ..evaluation.gate_evaluation import GateEvaluation
    from ..models.pair import Pair

# -- a candidate ------------------------------------------------------------------------------------------------------


def gate_candidate(work: Work, version: str, pointer: Pointer) -> None:
    """Evaluate a candidate against the champion, and promote or refuse it.

    Raises:
        ChampionMoved: the champion is another one than the candidate was compared with; nothing was decided.
    """
    registry, verdicts, gate = work.data.registry, work.data.verdicts, work.config.gate

    # 1. Some candidates are refused or discarded whatever their scores: nothing is scored, and nothing spent.
    unscored = _without_scores(registry, version)
    if unscored is not None:
        verdict, why = unscored
        verdicts.give(_verdict(work, version, pointer, verdict, (why,)))
        work.result.end("refused", why, version)  # a run ends alike; what is discarded leaves its failures unused
        return

    # 2. The held-out records that this pair can be evaluated on. What is logged from now on is kept for the looks.
    pair, group_of = work.pair(pointer), work.data.log.groups().group_of
    seen = {one.id for one in work.stream}
    records = {record.id: record for record in work.records(pair, {"heldout"}) if record.id in seen}
    prompts, least = len({group_of(record) for record in records.values()}), gate.min_heldout_prompts
    if prompts < least:  # more were counted before the pair was loaded
        why = f"this pair can use {prompts} of {version}'s held-out prompts, and the gate wants {least}"
        work.result.end("inconclusive", why, version)
        return

    # 3. What drafts may propose is chosen with the first candidate, and holds for both that are compared.
    pair = work.with_settled_vocabulary(pair, version, pointer)

    # 4. Write the attempt down before anything is scored: it fixes the records and spends a share of alpha.
    champion = pointer.champion
    hashes = _weights_hash(registry, version), None if champion is None else _weights_hash(registry, champion)
    epoch, attempt = verdicts.open_attempt(
        Attempt(version, champion, *hashes),
        pair.identity,
        gate,
        {record.id: group_of(record) for record in records.values()},
        lambda number: heldout_sample(records.values(), gate.max_heldout_generations, number, group_of),
    )

    # 5. Score both drafts on these records, with the settings that the epoch fixed, and let the gate decide.
    from ..evaluation.gate_evaluation import evaluate_gate, ignore_work

    work.say(f"scoring {len(epoch.record_ids)} held-out generations: attempt {attempt} of epoch {epoch.number}")
    evaluation = evaluate_gate(
        pair,
        [records[record_id] for record_id in epoch.record_ids],
        work.directory(champion),
        work.directory(version),
        attempt=attempt,
        config=work.config.model_copy(update={"gate": gate.model_copy(update=epoch.fixed)}),
        seed=work.config.training.seed + attempt,
        target=work.target,
        group_of=group_of,
        on_work=work.on_work or ignore_work,
    )
    decision, reasons = evaluation.decision, "; ".join(evaluation.decision.reasons)
    _note_whether_it_pays(work, pair.with_adapter(work.directory(version)), evaluation)
    work.result.numbers = evaluation.to_json()
    if decision.outcome == "inconclusive":
        work.result.end("inconclusive", reasons, version)
        return

    # 6. Write the verdict down, then move the pointer, if the champion is still the one that was compared with.
    outcome: Literal["promoted", "refused"] = "promoted" if decision.outcome == "promote" else "refused"
    conditions = {"conditions": _conditions(work.config, epoch.pair), "epoch": epoch.fixed}
    scored = {"epoch": epoch.number, "attempt": attempt, "pair": epoch.pair}
    numbers = {**evaluation.to_json(), **conditions}
    registry.expect(pointer.sequence)
    verdicts.give(_verdict(work, version, pointer, outcome, decision.reasons, **scored, numbers=numbers))
    if outcome == "promoted":
        _promote(work, version, reasons, pointer)
    work.result.end(outcome, reasons, version)


def _note_whether_it_pays(work: Work, pair: Pair, evaluation: GateEvaluation) -> None:
    """Keep what steps take for the commands that ask later, and say so where the candidate would not pay yet."""
    from ..evaluation.break_even import break_even
    from ..evaluation.gate_evaluation import CANDIDATE
    from ..evaluation.latency import machine_fingerprint
    from ..evaluation.latency_profiles import StoredProfile

    key = machine_fingerprint(pair, greedy=False)
    if work.data.costs.of(key) is None:
        work.data.costs.keep_or_say(key, StoredProfile(evaluation.profile), work.say)
    position = evaluation.positions.get("all")
    if position is not None and (warning := break_even(position[CANDIDATE], evaluation.profile).warning):
        work.say(warning)


def finish_promotion(work: Work, version: str, why: str, pointer: Pointer) -> None:
    """Make the promotion that a crash cut off. Raises ChampionMoved: the champion is another one by now."""
    try:
        _promote(work, version, why, pointer)
    except AdapterError as error:
        verdict = work.data.verdicts.of(version)
        assert verdict is not None  # it said `promoted` when the facts were read, under this lock
        why = f"it passed the gate and was damaged since: {error}"
        work.data.verdicts.give(replace(verdict, outcome="discarded", reasons=(why,)))
        work.result.end("refused", why, version)
        return
    work.result.end("promoted", why, version)


def _promote(work: Work, version: str, why: str, pointer: Pointer) -> None:
    """Promote a version that passed the gate, and watch it; where the champion has moved, it is a candidate again."""
    try:
        work.watch(work.data.registry.promote(version, why, pointer.sequence))
    except ChampionMoved:
        work.data.verdicts.withdraw(version)
        raise


def heldout_sample(records: Iterable[Record], most: int, seed: int, group_of: GroupOf = own_group) -> list[str]:
    """Ids of at most so many records: first one record per prompt group, then more from the same groups.

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


def _without_scores(registry: Registry, version: str) -> tuple[VerdictOutcome, str] | None:
    """What becomes of a candidate whatever its scores, and why; None where it is to be scored."""
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


def _weights_hash(registry: Registry, version: str) -> str:
    files = registry.manifest(version).files
    return hashlib.sha256("".join(files[name].sha256 for name in (WEIGHTS, CONFIG)).encode()).hexdigest()


def _verdict(
    work: Work, version: str, pointer: Pointer, outcome: VerdictOutcome, reasons: tuple[str, ...], **scored: Any
) -> Verdict:
    return Verdict(
        version=version,
        champion=pointer.champion,
        outcome=outcome,
        reasons=reasons,
        pointer=pointer.sequence,
        when=work.clock(),
        **{"epoch": 0, "attempt": 0, **scored},
    )


def _conditions(config: Config, pair: PairId) -> dict[str, Any]:
    return {
        "pair": asdict(pair),
        "rule": config.speculative.rule,
        "num_draft_tokens": config.speculative.num_draft_tokens,
        "gate": config.gate.model_dump(),
    }


# -- the champion -----------------------------------------------------------------------------------------------------


def check_champion(work: Work, why: str, pointer: Pointer, looks: Sequence[Look]) -> None:
    """Make the looks at the champion that are due, and roll back where the previous draft proves better.

    Raises:
        ChampionMoved: the champion is another one than was looked at; nothing was rolled back.
    """
    registry, watch = work.data.registry, work.data.promotion_watch
    work.result.checked = pointer.sequence
    if pointer.previous is not None:
        try:
            registry.verify(registry.root / pointer.previous)
        except AdapterError as error:
            work.say(f"{pointer.champion} stays: there is nothing to go back to: {error}")
            return
    watching = watch.of(pointer)
    assert watching is not None  # the looks come from it
    for look in looks:
        work.say(f"scoring {pointer.champion} and the previous draft on {look.groups} new held-out prompts")
        watching = watch.note_begun(watching, look)
        result = _score_look(work, look, pointer)
        if result is None:
            watching = watch.note_done(watching, look, 1.0)
            work.say(f"{pointer.champion} stays: none of the generations that the look is about is left")
            continue
        sentence = describe_look(look, result, work.config.gate)
        if result.rolls_back:
            registry.rollback(f"{why}; {sentence}", pointer.sequence)
            conditions = _conditions(work.config, work.pair(pointer).identity)
            made = {"look": {**asdict(look), "record_ids": []}, **asdict(result)}
            work.result.numbers = {**made, "conditions": conditions}
            work.result.end("rolled back", f"{why}; {sentence}", pointer.champion)
            return
        watching = watch.note_done(watching, look, result.p_value)
        work.say(f"{pointer.champion} stays: {sentence}")


def _score_look(work: Work, look: Look, pointer: Pointer) -> LookResult | None:
    """Score the generations of a look under both drafts; None where none of them is left."""
    from ..evaluation.gate_evaluation import ignore_work, score_outputs

    pair, wanted = work.pair(pointer), set(look.record_ids)
    records = {record.id: record for record in work.records(pair, {"heldout"}) if record.id in wanted}
    group_of = work.data.log.groups().group_of
    sample = heldout_sample(records.values(), work.config.gate.max_heldout_generations, pointer.sequence, group_of)
    if not sample:
        return None
    k = work.config.speculative.num_draft_tokens
    outputs = score_outputs(
        pair,
        [records[record_id] for record_id in sample],
        work.directory(pointer.champion),
        work.directory(pointer.previous),
        config=work.config,
        most=k,
        target=work.target,
        group_of=group_of,
        on_work=work.on_work or ignore_work,
    )
    return compare_with_previous(outputs, k, look, work.config.gate, work.config.training.seed)


def watch_from_now(data: DataDirectory, config: Config, pointer: Pointer) -> None:
    """Watch what a person put into use: what is logged from now on is new to it.

    Raises:
        StoreError: the disk refused.
    """
    target = local_fingerprints(config.models.target)
    stream = read_overview(data, None if target is None else data.names.of(target)).stream
    data.promotion_watch.begin(pointer, stream, config.gate)


def watch_champion(data: DataDirectory, config: Config, facts: Facts) -> bool:
    """Watch a champion that nobody watches yet (an older version promoted it, or a crash came in between).

    New to it is what came after the last verdict or rollback, if that left it in use; else what comes from now on, as
    where the log was deleted since.

    Returns:
        Whether something was written, so that the facts are to be read anew.
    """
    watching = data.promotion_watch.of(facts.pointer)
    if watching is not None and is_gone(watching.mark, facts.overview.ids):
        data.promotion_watch.begin_anew(watching, facts.overview.stream)
        return True
    if facts.pointer.champion is None or watching is not None:
        return False
    before = History(data.audit.entries(), facts.target).before(facts.pointer.champion, facts.overview.stream)
    data.promotion_watch.begin(facts.pointer, before, config.gate)
    return True
