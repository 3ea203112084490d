"""One run of `retrain`: plan and act until there is a verdict or nothing left to do, then write one line of the audit.

It is idempotent, runs unattended, and takes its lock before MLX is imported. It may be killed at any moment: whatever
was acknowledged is on disk, and the next run plans from there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..config import Config
from ..data.log_position import mark_of
from ..data_directory import DataDirectory
from ..errors import ChampionMoved, Interrupted, StoreError, TrainingFailed
from ..models.hub import local_pair
from ..runtime.signals import StopRequest
from .facts import SETTLING, Facts, read_facts
from .gate_step import check_champion, finish_promotion, gate_candidate, watch_champion
from .plan import Action, NextAction, next_action
from .train_step import resume_training, train_candidate
from .work import Load, RetrainResult, Say, Work, loader

if TYPE_CHECKING:
    from ..evaluation.gate_evaluation import OnWork
    from ..evaluation.gate_target import GateTarget
    from ..training.train import OnStep


WATCHING: tuple[Action, ...] = ("finish", "check")
"""What needs no idle time: it trains nothing, and is soon done."""


@dataclass(frozen=True)
class Beside:
    """A server that a `retrain` works beside.

    Attributes:
        how: for `status`; None where there is none.
        memory_gb: that MLX may hold while it trains; None is what the configuration allows.
        only_watches: do no more than to finish a promotion and to look at the champion.
    """

    how: str | None = None
    memory_gb: float | None = None
    only_watches: bool = False


def retrain(
    data: DataDirectory,
    config: Config,
    *,
    force: bool = False,
    load: Load | None = None,
    say: Say = lambda _line: None,
    on_step: OnStep | None = None,
    on_work: OnWork | None = None,
    stop: StopRequest | None = None,
    clock: Callable[[], float] = time.time,
    target: GateTarget | None = None,
    beside: Beside | None = None,
) -> RetrainResult:
    """Do what is due, and write one line of the audit.

    Args:
        data: where everything lies.
        config: resolved.
        force: train whatever the count, the interval or a waiting candidate says; the gate still decides.
        load: gives the configured pair with an adapter; by default `loader`'s.
        say: called with what is being done.
        on_step: called after every optimizer step with how many are done and of how many.
        on_work: called for everything else that takes long: what it is, how many pieces are done and of how many.
        stop: asks to stop; by default the first Ctrl-C or SIGTERM does while training.
        clock: unix seconds.
        target: scores, times and decodes for the gate; by default that of the pair.
        beside: the server that it works beside.

    Raises:
        LockedError: another process trains here.
        TrainingFailed, Interrupted, StoreError, PairError, AdapterError: as in training; the audit has it too, where it
            can still be written.
    """
    beside = beside or Beside()
    with data.training_lock(), data.presence.shown("retrain", beside.how):
        began = time.monotonic()
        work = Work(data, config, load or loader(config, data.names), say, on_step, stop, clock, target)
        work.on_work, work.memory_gb = on_work, beside.memory_gb
        try:
            _do_what_is_due(work, force, WATCHING if beside.only_watches else None)
        except BaseException as error:
            stopped, failed = isinstance(error, Interrupted | KeyboardInterrupt), isinstance(error, TrainingFailed)
            ending = "interrupted" if stopped else "failed" if failed else "error"
            line = {"outcome": ending, "why": str(error) or "interrupted"}
            try:  # a failed training is not tried again at once
                _audit(work, began, line | ({"trained": True} if failed else {}))
            except StoreError as also:
                error.add_note(f"the audit could not be written either: {also}")
            raise
        _audit(work, began, {})
        work.result.seconds = time.monotonic() - began
    return work.result


def give_way(niceness: int) -> None:
    """Raise this process's niceness to at least `niceness`, from 0 to 19; where the system refuses, nothing happens."""
    with suppress(OSError):
        os.nice(max(0, niceness - os.nice(0)))


def _do_what_is_due(work: Work, force: bool, allowed: Sequence[Action] | None) -> None:
    """Action after action until a verdict, or nothing is left to do of what is `allowed`; None allows all."""
    data, config, result = work.data, work.config, work.result
    # 1. Report a damaged champion at once, and not when a training is due. Keep the models' names now: one that
    #    draftloop 0.1 named is recognised only until its template changes, and most runs load no model.
    data.registry.resolve("champion")
    files = local_pair(config.models, data.names)
    data.names.keep(*(file for file in files if file is not None))

    # 2. The facts, with the champion watched from now on.
    facts = read_facts(data, config, work.clock())
    if facts.overview.denied is not None:  # nobody knows what it would have said
        raise facts.overview.denied
    if watch_champion(data, config, facts):
        facts = read_facts(data, config, work.clock())
    result.failures, result.trainable = facts.overview.failures_new, facts.overview.failures_trainable
    result.generations, result.recipe = len(facts.overview.stream), facts.recipe
    result.mark = mark_of(facts.overview.ids)
    result.target = facts.target
    result.clock = facts.minutes is not None and facts.minutes < 0

    # 3. Plan and act; after each action the facts are others.
    while not result.why:
        if result.steps:
            facts = read_facts(data, config, work.clock())
        work.stream = facts.overview.stream
        planned = next_action(facts, config, force=force and not result.trained, checked=bool(result.steps))
        if planned.action == "train" and result.trained:
            raise StoreError(f"{result.version} was trained and is no candidate: see `status` for what is damaged")
        if allowed is not None and planned.action not in allowed:
            planned = NextAction("nothing", f"{planned.action} waits for idle time: {planned.why}")
        work.say(f"{planned.action}: {planned.why}")
        data.presence.doing(f"{planned.action}: {planned.why}")
        result.steps.append(planned.action)
        _act(work, planned, facts)
        result.champion = data.registry.champion()

    # 4. Delete the weights of old versions, but never a candidate's.
    if result.outcome in ("promoted", "refused"):
        candidate = facts.overview.candidate
        result.pruned = data.registry.prune(config.retrain.keep_versions, [candidate] if candidate else [])


def _act(work: Work, planned: NextAction, facts: Facts) -> None:
    subject, pointer = str(planned.subject), facts.pointer
    try:
        if planned.action == "finish":
            finish_promotion(work, subject, planned.why, pointer)
        elif planned.action == "check":
            check_champion(work, planned.why, pointer, facts.looks)
        elif planned.action == "gate":
            gate_candidate(work, subject, pointer)
        elif planned.action == "resume":
            resume_training(work, subject)
        elif planned.action == "train":
            train_candidate(work)
        else:
            work.result.end("nothing" if planned.action == "nothing" else "inconclusive", planned.why, planned.subject)
    except ChampionMoved as moved:  # by a person, since the facts were read: nothing holds that lock for so long
        work.result.end("inconclusive", f"{moved}. Nothing was decided about {subject}", subject)


def _audit(work: Work, began: float, ending: dict[str, Any]) -> None:
    """The one line of this run."""
    line = {"when": work.clock(), **asdict(work.result), **ending, "seconds": time.monotonic() - began}
    if line["outcome"] not in SETTLING:
        del line["mark"]
    work.data.audit.append(line)
