"""What `retrain` would do next, and why: facts of a data directory in, one step out. Imports no mlx.

What is most nearly done comes first: a promotion that a crash cut off, an alarm after a promotion, a training that was
cut off, a candidate without a verdict, and only then a new training.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from ..config import Config
from ..data.log_position import position_after
from ..data.splits import FIRST_TRAIN_GROUPS, HELDOUT_SHARE
from ..data_directory import DataDirectory
from ..errors import RunError, StoreError
from ..evaluation.drift import LoggedGeneration, StreamCheck, check_streams
from ..evaluation.looks import Look, due_looks, new_outputs
from ..evaluation.promotion_watch import watching_from
from ..evaluation.units_and_levels import unit_name
from ..models.hub import local_fingerprints
from ..registry.registry import Pointer
from ..status import Overview, read_overview
from ..training.run import RunDirectory

PURPOSE = "retrain"

Action = Literal["nothing", "finish", "check", "resume", "gate", "wait", "train"]

SETTLING = ("promoted", "refused", "rolled back")  # outcomes that use up the alarms there were


@dataclass(frozen=True)
class NextAction:
    """What would be done.

    Attributes:
        action: `finish` a promotion, `check` the champion against the draft before it (looks, and alarms), `resume` a
            run, `gate` a candidate, `wait` for held-out prompts to gate it on, `train`, or `nothing`.
        why: one sentence.
        subject: the version or run that it is about.
    """

    action: Action
    why: str
    subject: str | None = None


@dataclass(frozen=True)
class Failed:
    """A training that gave no version: failures that there were to train on, used or not, and its recipe."""

    failures: int
    recipe: str


@dataclass(frozen=True)
class Facts:
    """The facts that a step follows from.

    Attributes:
        overview: counts of the log.
        pointer: of the registry.
        pending: a version that passed the gate while the pointer stood where it still stands.
        run: an unfinished run of an earlier `retrain` on top of this champion and with these models.
        watches: what drift sees in the generations since the last verdict, alarms first.
        looks: due at the champion, on held-out prompts that are new since its promotion.
        watched: generations of the champion since the last verdict: of prompts that it was not trained on, and all.
        minutes: since the last training, None before the first; negative where the clock went backward.
        failed: what is known of the last training where it failed; None where it did not.
        recipe: of the configuration that a training would have now.
        target: the configured target's name; None where it is not on this machine.
        template: a sentence where its chat template changed since prompts were last collected.
    """

    overview: Overview
    pointer: Pointer
    pending: str | None
    run: str | None
    watches: tuple[StreamCheck, ...]
    looks: tuple[Look, ...]
    watched: tuple[int, int]
    minutes: float | None
    failed: Failed | None
    recipe: str
    target: str | None
    template: str | None = None

    @property
    def alarms(self) -> list[StreamCheck]:
        """The streams that fell."""
        return [found for found in self.watches if found.alarm]


def read_facts(data: DataDirectory, config: Config, now: float) -> Facts:
    """Read the facts. Nothing is changed and no model is loaded.

    Args:
        data: the directory.
        config: whose target it is about, where that is on this machine.
        now: unix seconds.

    Raises:
        StoreError: the pointer is damaged, or a newer draftloop wrote there.
    """
    files = [local_fingerprints(name) for name in (config.models.target, config.models.draft)]
    target, draft = (None if found is None else data.names.of(found) for found in files)
    overview = read_overview(data, target, draft)
    pointer, history = data.registry.pointer(), History(data.audit.entries(), target)
    since = overview.stream[history.settled(overview.ids) :]
    before = [one for one in overview.stream if one.adapter == pointer.previous] if pointer.sequence else []
    seen = tuple(check_streams(since, pointer.champion, before, config.drift, config.training.seed))
    own = [one for one in since if one.adapter == pointer.champion]
    return Facts(
        overview=overview,
        pointer=pointer,
        pending=_pending(data, pointer),
        run=_resumable(data, config, pointer),
        watches=seen,
        looks=_looks(data, config, pointer, overview, history, alarm=any(one.alarm for one in seen)),
        watched=(sum(one.unseen for one in own), len(own)),
        minutes=history.minutes(now),
        failed=history.failed,
        recipe=recipe(config),
        target=target,
        template=None if files[0] is None else data.names.changed_template(files[0]),
    )


def recipe(config: Config) -> str:
    """sha256 of all that decides how a training goes, but for the failures: what failed may go well under another."""
    sections = "".join(section.model_dump_json() for section in (config.models, config.data, config.training))
    budget = f"{config.retrain.max_minutes} {config.retrain.max_memory_gb}"
    return hashlib.sha256((sections + budget).encode()).hexdigest()


class History:
    """What the lines of `runs/audit.jsonl` say of the past, by their order and never by their time.

    Args:
        entries: the lines, oldest first.
        target: name of the target whose generations and failures are spoken of; None is any.
    """

    def __init__(self, entries: Sequence[Mapping[str, Any]], target: str | None = None) -> None:
        self._all = entries
        self._entries = [one for one in entries if target is None or one.get("target") in (None, target)]

    def settled(self, ids: Sequence[str]) -> int:
        """Index of the first generation after the last verdict or rollback: alarms about those before are dealt with.

        Args:
            ids: of all generations of the target, in the order of the log.
        """
        last = self._last_settling()
        if last is None:
            return 0
        if "mark" in last:
            return position_after(last["mark"], ids)
        count = int(last.get("generations", 0))  # of lines that older versions wrote
        return count if count <= len(ids) else 0

    def _last_settling(self) -> Mapping[str, Any] | None:
        return next((entry for entry in reversed(self._entries) if entry.get("outcome") in SETTLING), None)

    def before(self, champion: str | None, stream: Sequence[LoggedGeneration]) -> Sequence[LoggedGeneration]:
        """What is not new to a champion that nobody watches yet: all up to the last verdict or rollback, if that left
        it in use, and else everything. A promotion that is in no line may rest on all that there is.
        """
        last = self._last_settling()
        known = last is not None and last.get("champion") == champion
        settled = self.settled([one.id for one in stream]) if known else 0
        return stream[:settled] if settled else stream

    @property
    def failed(self) -> Failed | None:
        """The last training where it failed by its numbers or found nothing that it could use; else None."""
        last = next((entry for entry in reversed(self._entries) if entry.get("trained")), None)
        if last is None or last.get("outcome") not in ("failed", "nothing"):
            return None
        return Failed(int(last.get("trainable", 0)), str(last.get("recipe")))

    def minutes(self, now: float) -> float | None:
        """Since the last training; None before the first. Negative where the clock went backward since.

        A line that notes a clock gone backward counts as a training at its own time: the interval begins anew there.
        """
        found = (e for e in reversed(self._all) if e.get("trained") or e.get("clock"))
        last = next(found, None)
        return None if last is None else (now - float(last["when"])) / 60


def next_action(facts: Facts, config: Config, *, force: bool = False, checked: bool = False) -> NextAction:
    """The one thing to do now.

    Args:
        facts: by `read_facts`.
        config: thresholds.
        force: train whatever the count, the interval or a waiting candidate says.
        checked: the champion was held against the one before it in this very run.
    """
    if facts.pending is not None:
        return NextAction("finish", f"{facts.pending} passed the gate, and its promotion was cut off", facts.pending)
    if not checked and facts.looks:
        return NextAction("check", _why_look(facts), facts.pointer.champion)
    if facts.run is not None:
        return NextAction("resume", f"run {facts.run} was cut off and left a checkpoint", facts.run)
    if facts.overview.candidate is not None and not force:
        return _gate(facts.overview, config)
    return _train(facts, config, force)


def _why_look(facts: Facts) -> str:
    """An alarm where there is one, or the new prompts."""
    if any(look.kind != "look" for look in facts.looks) and facts.alarms:
        return f"{_said(facts.alarms[0])}, under {facts.pointer.champion}"
    said = " and ".join(f"{look.groups} of {unit_name(look.unit)}" for look in facts.looks)
    return f"held-out prompts that are new since {facts.pointer.champion} was promoted: {said}"


def _looks(
    data: DataDirectory, config: Config, pointer: Pointer, overview: Overview, history: History, *, alarm: bool
) -> tuple[Look, ...]:
    """What is due at the champion; nothing where the draft to go back to was itself taken back.

    A champion that nobody watches yet is taken as `retrain` will begin to watch it.
    """
    if pointer.champion is None or pointer.previous in data.registry.rolled_back():
        return ()
    try:
        watching = data.promotion_watch.of(pointer)
    except StoreError as error:
        overview.note(error)
        return ()
    if watching is None:
        before = history.before(pointer.champion, overview.stream)
        watching = watching_from(pointer, pointer.champion, before, config.gate)
    return tuple(due_looks(watching, new_outputs(overview.stream, watching.mark), alarm=alarm))


def _gate(overview: Overview, config: Config) -> NextAction:
    found, least = len(overview.heldout_prompts), config.gate.min_heldout_prompts
    if found < least:
        first = 0 if found else max(0, FIRST_TRAIN_GROUPS - len(overview.prompts))  # none of these is held out
        more = f"collect about {first + math.ceil((least - found) / HELDOUT_SHARE)} more prompts"
        why = f"{overview.candidate} waits for the gate, with {found} of {least} held-out prompts; {more}"
        return NextAction("wait", why, overview.candidate)
    return NextAction("gate", f"{overview.candidate} has no verdict yet", overview.candidate)


def _train(facts: Facts, config: Config, force: bool) -> NextAction:
    unused, least = facts.overview.failures_new, config.training.min_failure_cases
    alarms, missing = facts.alarms, _missing_since_failed(facts, least)
    said = f"{unused} unused failures"
    if not facts.overview.failures_trainable:
        return _nothing(facts.overview)
    if force:
        return NextAction("train", f"{said}, and it was asked for")
    if missing > 0:
        why = "the last training came to nothing; it is tried again"
        return NextAction("nothing", f"{why} with {missing} more failures, with other settings, or with --force")
    enough, drifted = unused >= least, bool(alarms) and unused >= config.drift.min_failure_cases
    if not (enough or drifted):
        return NextAction("nothing", f"{said} of {least}" + (f"; {_said(alarms[0])}" if alarms else ""))
    if facts.minutes is not None and facts.minutes < config.retrain.min_interval_minutes:
        return NextAction("nothing", _too_soon(facts.minutes, config))
    return NextAction("train", f"{said}, at least {least}" if enough else f"{said}, and {_said(alarms[0])}")


def _missing_since_failed(facts: Facts, least: int) -> int:
    """New failures still to come before what failed is tried again as it was; 0 or less where nothing is in the way."""
    if facts.failed is None or facts.failed.recipe != facts.recipe:
        return 0
    return facts.failed.failures + least - facts.overview.failures_trainable


def _nothing(overview: Overview) -> NextAction:
    generations = f"among {overview.generations} generations" if overview.generations else "yet"
    return NextAction("nothing", f"no failure to train on {generations}; `collect-data` logs them")


def _too_soon(minutes: float, config: Config) -> str:
    least = f"retrain.min_interval_minutes is {config.retrain.min_interval_minutes:g}"
    if minutes < 0:
        return f"the clock went backward by {-minutes:.0f} minutes since the last training; {least} from now"
    return f"the last training was {minutes:.0f} minutes ago; {least}"


def _said(alarm: StreamCheck) -> str:
    what = "what it was" if alarm.kind == "drift" else "what the draft before it reached"
    return f"acceptance of {alarm.source} fell from {alarm.reference:.3f} to {alarm.recent:.3f} ({what})"


def _pending(data: DataDirectory, pointer: Pointer) -> str | None:
    """The newest version that passed while the pointer stood where it stands; a damaged verdict says nothing."""
    for name in reversed(data.registry.versions()):
        with suppress(StoreError):
            verdict = data.verdicts.of(name)
            if verdict is not None and (verdict.outcome, verdict.pointer) == ("promoted", pointer.sequence):
                return name
    return None


def _resumable(data: DataDirectory, config: Config, pointer: Pointer) -> str | None:
    """The newest run that was cut off, if it goes on from this champion and with these models."""
    for run in reversed(RunDirectory.unfinished(data.runs, PURPOSE)):
        with suppress(RunError):
            fits = run.config().models == config.models and run.description().get("parent") == pointer.champion
            if fits and run.checkpoints.exist():
                return run.id
    return None
