"""What `retrain` would do next, and why: facts of a data directory in, one step out. Imports no mlx.

What is most nearly done comes first: a promotion that a crash cut off, an alarm after a promotion, a training that was
cut off, a candidate without a verdict, and only then a new training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .config import Config
from .data_directory import DataDirectory
from .drift import Watch, watches
from .model_files import local_fingerprint
from .overview import Overview, survey
from .registry import Pointer
from .training.run import RunDirectory

PURPOSE = "retrain"

Action = Literal["nothing", "finish", "check", "resume", "gate", "wait", "train"]

SETTLING = ("promoted", "refused", "rolled back")  # outcomes that use up the alarms there were


@dataclass(frozen=True)
class Step:
    """What would be done.

    Attributes:
        action: `finish` a promotion, `check` champion against previous, `resume` a run, `gate` a candidate, `wait` for
            held-out prompts to gate it on, `train`, or `nothing`.
        why: one sentence.
        subject: the version or run that it is about.
    """

    action: Action
    why: str
    subject: str | None = None


@dataclass(frozen=True)
class Situation:
    """The facts that a step follows from.

    Attributes:
        overview: counts of the log.
        pointer: of the registry.
        pending: a version that passed the gate while the pointer stood where it still stands.
        run: an unfinished run of an earlier `retrain` on top of this champion.
        watches: what drift sees in the generations since the last verdict, alarms first.
        unchecked: generations of the champion since the last verdict and the last check of it.
        minutes: since the last training, None before the first; negative where the clock went backward.
        failed_with: unused failures when the last training failed; None where it did not.
    """

    overview: Overview
    pointer: Pointer
    pending: str | None
    run: str | None
    watches: tuple[Watch, ...]
    unchecked: int
    minutes: float | None
    failed_with: int | None

    @property
    def alarms(self) -> list[Watch]:
        """The streams that fell."""
        return [found for found in self.watches if found.alarm]


def look(data: DataDirectory, config: Config, now: float) -> Situation:
    """Read the facts. Nothing is changed and no model is loaded.

    Args:
        data: the directory.
        config: whose target it is about, where that is on this machine.
        now: unix seconds.

    Raises:
        StoreError: pointer, verdict or epoch is damaged, or a newer draftloop wrote there.
    """
    overview = survey(data, *(local_fingerprint(name) for name in (config.models.target, config.models.draft)))
    pointer, history = data.registry.pointer(), History(data.audit.entries())
    since = overview.stream[history.settled :]
    before = [one for one in overview.stream if one.adapter == pointer.previous] if pointer.sequence else []
    checked = max(history.settled, history.checked(pointer))
    return Situation(
        overview=overview,
        pointer=pointer,
        pending=_pending(data, pointer),
        run=_resumable(data, pointer),
        watches=tuple(watches(since, pointer.champion, before, config.drift, config.training.seed)),
        unchecked=sum(one.adapter == pointer.champion for one in overview.stream[checked:]),
        minutes=history.minutes(now),
        failed_with=history.failed_with,
    )


class History:
    """What the lines of `runs/audit.jsonl` say of the past, by their order and never by their time."""

    def __init__(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self._entries = entries
        self._last = next((entry for entry in reversed(entries) if entry.get("trained")), None)

    @property
    def settled(self) -> int:
        """Generations there were at the last verdict or rollback: alarms about them are dealt with."""
        return self._generations(lambda entry: entry.get("outcome") in SETTLING)

    @property
    def failed_with(self) -> int | None:
        """Unused failures when the last training failed by its numbers; None where it did not."""
        failed = self._last is not None and self._last.get("outcome") == "failed"
        return int(self._last["failures"]) if self._last is not None and failed else None

    def checks(self, pointer: Pointer) -> int:
        """How often this champion was held against the one before."""
        return sum(entry.get("checked") == pointer.sequence for entry in self._entries)

    def checked(self, pointer: Pointer) -> int:
        """Generations there were at the last of these checks."""
        return self._generations(lambda entry: entry.get("checked") == pointer.sequence)

    def minutes(self, now: float) -> float | None:
        """Since the last training; None before the first. Negative where the clock went backward since.

        A line that notes a clock gone backward counts as a training at its own time: the interval begins anew there.
        """
        found = (e for e in reversed(self._entries) if e.get("trained") or e.get("clock"))
        last = next(found, None)
        return None if last is None else (now - float(last["when"])) / 60

    def _generations(self, wanted: Callable[[Mapping[str, Any]], bool]) -> int:
        found = (int(entry.get("generations", 0)) for entry in reversed(self._entries) if wanted(entry))
        return next(found, 0)


def next_step(facts: Situation, config: Config, *, force: bool = False, checked: bool = False) -> Step:
    """The one thing to do now.

    Args:
        facts: by `look`.
        config: thresholds.
        force: train whatever the count, the interval or a waiting candidate says.
        checked: the champion was held against the one before it in this very run.
    """
    if facts.pending is not None:
        return Step("finish", f"{facts.pending} passed the gate, and its promotion was cut off", facts.pending)
    if not checked and _needs_check(facts, config):
        return Step("check", f"{_said(facts.alarms[0])}, under {facts.pointer.champion}", facts.pointer.champion)
    if facts.run is not None:
        return Step("resume", f"run {facts.run} was cut off and left a checkpoint", facts.run)
    if facts.overview.candidate is not None and not force:
        return _gate(facts.overview, config)
    return _train(facts, config, force)


def _needs_check(facts: Situation, config: Config) -> bool:
    """An alarm under a promoted champion, with enough new generations since the last look."""
    return bool(
        facts.alarms
        and facts.pointer.champion is not None
        and facts.unchecked >= max(config.drift.reference, config.gate.min_heldout_prompts)
    )


def _gate(overview: Overview, config: Config) -> Step:
    found, least = len(overview.heldout_prompts), config.gate.min_heldout_prompts
    if found < least:
        why = f"{overview.candidate} waits for the gate: {found} held-out prompts of {least}; collect more"
        return Step("wait", why, overview.candidate)
    return Step("gate", f"{overview.candidate} has no verdict yet", overview.candidate)


def _train(facts: Situation, config: Config, force: bool) -> Step:
    unused, least = facts.overview.failures_new, config.training.min_failure_cases
    alarms, failed = facts.alarms, facts.failed_with
    said = f"{unused} unused failures"
    if force:
        return Step("train", f"{said}, and it was asked for") if unused or facts.overview.failures_used else _nothing()
    if failed is not None and unused < failed + least:
        return Step("nothing", f"the last training failed; it is tried again with {failed + least} unused failures")
    enough, drifted = unused >= least, bool(alarms) and unused >= config.drift.min_failure_cases
    if not (enough or drifted):
        return Step("nothing", f"{said} of {least}" + (f"; {_said(alarms[0])}" if alarms else ""))
    if facts.minutes is not None and facts.minutes < config.retrain.min_interval_minutes:
        return Step("nothing", _too_soon(facts.minutes, config))
    return Step("train", f"{said}, at least {least}" if enough else f"{said}, and {_said(alarms[0])}")


def _nothing() -> Step:
    return Step("nothing", "no failure was logged yet; run collect-data first")


def _too_soon(minutes: float, config: Config) -> str:
    least = f"retrain.min_interval_minutes is {config.retrain.min_interval_minutes:g}"
    if minutes < 0:
        return f"the clock went backward by {-minutes:.0f} minutes since the last training; {least} from now"
    return f"the last training was {minutes:.0f} minutes ago; {least}"


def _said(alarm: Watch) -> str:
    what = "what it was" if alarm.kind == "drift" else "what the draft before it reached"
    return f"acceptance of {alarm.source} fell from {alarm.reference:.3f} to {alarm.recent:.3f} ({what})"


def _pending(data: DataDirectory, pointer: Pointer) -> str | None:
    name = data.registry.latest()
    verdict = data.verdicts.of(name) if name else None
    passed = verdict is not None and (verdict.outcome, verdict.pointer) == ("promoted", pointer.sequence)
    return name if passed else None


def _resumable(data: DataDirectory, pointer: Pointer) -> str | None:
    """The newest run that was cut off, if it goes on from this champion."""
    for run in reversed(RunDirectory.unfinished(data.runs, PURPOSE)):
        if run.checkpoints.exist() and run.description().get("parent") == pointer.champion:
            return run.id
    return None
