"""The planner: a pure function from the facts of a data directory to the next action of `retrain`. Reads nothing.

It completes what was begun before it begins anything: a promotion that a crash cut off, looks at the champion, a
training that was cut off, a candidate without a verdict, and only then a new training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..config import Config
from ..data.splits import FIRST_TRAIN_GROUPS, HELDOUT_SHARE
from ..evaluation.drift import StreamCheck
from ..evaluation.units_and_levels import unit_name
from .facts import Facts

Action = Literal["nothing", "finish", "check", "resume", "gate", "wait", "train"]


@dataclass(frozen=True)
class NextAction:
    """What `retrain` does next.

    Attributes:
        action: `finish` a promotion, `check` the champion against the previous draft (looks, and alarms), `resume` a
            run, `gate` a candidate, `wait` for held-out prompts to gate it on, `train`, or `nothing`.
        why: one sentence.
        subject: the version or run that it is about.
    """

    action: Action
    why: str
    subject: str | None = None


def next_action(facts: Facts, config: Config, *, force: bool = False, checked: bool = False) -> NextAction:
    """The one thing to do now.

    Args:
        facts: by `read_facts`.
        config: thresholds.
        force: train whatever the count, the interval or a waiting candidate says.
        checked: this run has compared the champion with the previous draft already.
    """
    # 1. Finish a promotion: the verdict is written, the pointer has not moved.
    if facts.pending is not None:
        return NextAction("finish", f"{facts.pending} passed the gate, and its promotion was cut off", facts.pending)

    # 2. Look at the champion, after an alarm or on new held-out prompts.
    if not checked and facts.looks:
        if facts.alarms and any(look.kind != "look" for look in facts.looks):
            why = f"{_fallen(facts.alarms[0])}, under {facts.pointer.champion}"
        else:
            new = " and ".join(f"{look.groups} of {unit_name(look.unit)}" for look in facts.looks)
            why = f"held-out prompts that are new since {facts.pointer.champion} was promoted: {new}"
        return NextAction("check", why, facts.pointer.champion)

    # 3. Resume a training.
    if facts.run is not None:
        return NextAction("resume", f"run {facts.run} was cut off and left a checkpoint", facts.run)

    # 4. Gate the candidate, or wait for the held-out prompts that this takes.
    candidate = facts.overview.candidate
    if candidate is not None and not force:
        prompts, least = len(facts.overview.heldout_prompts), config.gate.min_heldout_prompts
        if prompts >= least:
            return NextAction("gate", f"{candidate} has no verdict yet", candidate)
        first = 0 if prompts else max(0, FIRST_TRAIN_GROUPS - len(facts.overview.prompts))  # none of these is held out
        more = f"collect about {first + math.ceil((least - prompts) / HELDOUT_SHARE)} more prompts"
        why = f"{candidate} waits for the gate, with {prompts} of {least} held-out prompts; {more}"
        return NextAction("wait", why, candidate)

    # 5. Train, if there is enough to learn from and a training is allowed again.
    return _training_action(facts, config, force)


def _training_action(facts: Facts, config: Config, force: bool) -> NextAction:
    overview, least, alarms = facts.overview, config.training.min_failure_cases, facts.alarms
    unused = f"{overview.failures_new} unused failures"
    if not overview.failures_trainable:
        generations = f"among {overview.generations} generations" if overview.generations else "yet"
        return NextAction("nothing", f"no failure to train on {generations}; `collect-data` logs them")
    if force:
        return NextAction("train", f"{unused}, and it was asked for")
    if facts.failed is not None and facts.failed.recipe == facts.recipe:  # it would fail again as it was
        missing = facts.failed.failures + least - overview.failures_trainable
        if missing > 0:
            why = "the last training came to nothing; it is tried again"
            return NextAction("nothing", f"{why} with {missing} more failures, with other settings, or with --force")
    enough = overview.failures_new >= least
    drifted = bool(alarms) and overview.failures_new >= config.drift.min_failure_cases
    if not (enough or drifted):
        return NextAction("nothing", f"{unused} of {least}" + (f"; {_fallen(alarms[0])}" if alarms else ""))
    if facts.minutes is not None and facts.minutes < config.retrain.min_interval_minutes:
        return NextAction("nothing", _too_soon(facts.minutes, config))
    return NextAction("train", f"{unused}, at least {least}" if enough else f"{unused}, and {_fallen(alarms[0])}")


def _too_soon(minutes: float, config: Config) -> str:
    least = f"retrain.min_interval_minutes is {config.retrain.min_interval_minutes:g}"
    if minutes < 0:
        return f"the clock went backward by {-minutes:.0f} minutes since the last training; {least} from now"
    return f"the last training was {minutes:.0f} minutes ago; {least}"


def _fallen(alarm: StreamCheck) -> str:
    usual = "what it was" if alarm.kind == "drift" else "what the previous draft reached"
    return f"acceptance of {alarm.source} fell from {alarm.reference:.3f} to {alarm.recent:.3f} ({usual})"
