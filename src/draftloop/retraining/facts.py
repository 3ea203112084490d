"""The facts that the planner decides by, read from a data directory and its audit. Changes nothing, loads no model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..config import Config
from ..data.log_position import position_after
from ..data_directory import DataDirectory
from ..errors import RunError, StoreError
from ..evaluation.drift import LoggedGeneration, StreamCheck, check_streams
from ..evaluation.looks import Look, due_looks, new_outputs
from ..evaluation.promotion_watch import watching_from
from ..models.hub import local_pair
from ..registry.registry import Pointer
from ..status import Overview, read_overview
from ..training.run import RunDirectory

PURPOSE = "retrain"
SETTLING = ("promoted", "refused", "rolled back")  # outcomes that use up the alarms there were


@dataclass(frozen=True)
class Failed:
    """A training that gave no version: failures that there were to train on, used or not, and its recipe."""

    failures: int
    recipe: str


@dataclass(frozen=True)
class Facts:
    """What the next action follows from.

    Attributes:
        overview: counts of the log.
        pointer: of the registry.
        pending: a version that passed the gate while the pointer stood where it still stands.
        run: an unfinished run of an earlier `retrain` on top of this champion and with these models.
        drift_checks: of the generations since the last verdict, by stream, alarms first.
        looks: the ones that are due at the champion, on held-out prompts that are new since its promotion.
        champion_generations: of the champion since the last verdict: how many of prompts that it was not trained on,
            and how many in all.
        minutes: since the last training, None before the first; negative where the clock went backward.
        failed: the last training, if it failed; else None.
        recipe: of the configuration that a training would have now.
        target: the configured target's name; None where it is not on this machine.
        draft: the draft's; None where it is not on this machine, or not cut from the target yet.
        template: a sentence if its chat template changed since prompts were last collected.
    """

    overview: Overview
    pointer: Pointer
    pending: str | None
    run: str | None
    drift_checks: tuple[StreamCheck, ...]
    looks: tuple[Look, ...]
    champion_generations: tuple[int, int]
    minutes: float | None
    failed: Failed | None
    recipe: str
    target: str | None
    draft: str | None = None
    template: str | None = None

    @property
    def alarms(self) -> list[StreamCheck]:
        """The streams whose acceptance fell."""
        return [stream for stream in self.drift_checks if stream.alarm]


def read_facts(data: DataDirectory, config: Config, now: float) -> Facts:
    """Read the facts. Nothing is changed and no model is loaded.

    Args:
        data: the directory.
        config: its target is the one whose generations count, if it is on this machine.
        now: unix seconds.

    Raises:
        StoreError: the pointer is damaged, or a newer draftloop wrote there.
    """
    # 1. The configured models, by their names in this directory, and what the log has of them.
    files = local_pair(config.models, data.names)
    target, draft = (None if file is None else data.names.of(file) for file in files)
    overview = read_overview(data, target, draft)
    pointer, history = data.registry.pointer(), History(data.audit.entries(), target)

    # 2. Drift: the champion's generations since the last verdict, against those of the previous draft.
    since = overview.stream[history.settled(overview.ids) :]
    before = [one for one in overview.stream if one.adapter == pointer.previous] if pointer.sequence else []
    streams = tuple(check_streams(since, pointer.champion, before, config.drift, config.training.seed))
    own = [one for one in since if one.adapter == pointer.champion]
    return Facts(
        overview=overview,
        pointer=pointer,
        pending=_pending(data, pointer),
        run=_resumable(data, config, pointer),
        drift_checks=streams,
        looks=_looks(data, config, pointer, overview, history, alarm=any(stream.alarm for stream in streams)),
        champion_generations=(sum(one.unseen for one in own), len(own)),
        minutes=history.minutes(now),
        failed=history.failed,
        recipe=recipe(config),
        target=target,
        draft=draft,
        template=None if files[0] is None else data.names.changed_template(files[0]),
    )


def recipe(config: Config) -> str:
    """sha256 of all settings that a training depends on: a training that failed may succeed with another recipe."""
    models = config.models.model_dump_json(exclude={"draft_vocabulary"})  # no training depends on these two
    kept = config.data.model_dump_json(exclude={"max_log_mb"})
    sections = models + kept + config.training.model_dump_json()
    budget = f"{config.retrain.max_minutes} {config.retrain.max_memory_gb}"
    return hashlib.sha256((sections + budget).encode()).hexdigest()


class History:
    """The past of a data directory by the lines of `runs/audit.jsonl`, in their order and never by their time.

    Args:
        entries: the lines, oldest first.
        target: name of the target whose generations and failures are counted; None is any.
    """

    def __init__(self, entries: Sequence[Mapping[str, Any]], target: str | None = None) -> None:
        self._all = entries
        self._entries = [one for one in entries if target is None or one.get("target") in (None, target)]
        settling = (entry for entry in reversed(self._entries) if entry.get("outcome") in SETTLING)
        self._verdict = next(settling, None)  # the last verdict or rollback

    @property
    def counts(self) -> bool:
        """Whether the place of the last verdict is a count of generations, as older versions wrote it, and no mark."""
        return self._verdict is not None and "mark" not in self._verdict

    def settled(self, ids: Sequence[str]) -> int:
        """Index of the first generation after the last verdict or rollback: alarms about those before are dealt with.

        Args:
            ids: of all generations of the target, in the order of the log.
        """
        if self._verdict is None:
            return 0
        if "mark" in self._verdict:
            return position_after(self._verdict["mark"], ids)
        count = int(self._verdict.get("generations", 0))  # of lines that older versions wrote
        return count if count <= len(ids) else 0

    def before(self, champion: str | None, stream: Sequence[LoggedGeneration]) -> Sequence[LoggedGeneration]:
        """The generations that are not new to a champion that has no watch yet.

        These are all up to the last verdict or rollback, if that left the champion in use. Else they are all there are:
        a promotion without a line in the audit may rest on any of them.
        """
        known = self._verdict is not None and self._verdict.get("champion") == champion
        settled = self.settled([one.id for one in stream]) if known else 0
        return stream[:settled] if settled else stream

    @property
    def failed(self) -> Failed | None:
        """The last training, if it failed by its numbers or had nothing to train on; else None."""
        last = next((entry for entry in reversed(self._entries) if entry.get("trained")), None)
        if last is None or last.get("outcome") not in ("failed", "nothing"):
            return None
        return Failed(int(last.get("trainable", 0)), str(last.get("recipe")))

    def minutes(self, now: float) -> float | None:
        """Since the last training; None before the first. Negative where the clock went backward since.

        A line that notes a clock gone backward counts as a training at its own time: the interval begins anew there.
        """
        last = next((entry for entry in reversed(self._all) if entry.get("trained") or entry.get("clock")), None)
        return None if last is None else (now - float(last["when"])) / 60


def _looks(
    data: DataDirectory, config: Config, pointer: Pointer, overview: Overview, history: History, *, alarm: bool
) -> tuple[Look, ...]:
    """The looks that are due at the champion; none where the previous draft was itself rolled back.

    Where the champion has no watch yet, they are those of the watch that `retrain` will begin.
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


def _pending(data: DataDirectory, pointer: Pointer) -> str | None:
    """The newest version that passed while the pointer stood where it stands; a damaged verdict says nothing."""
    for name in reversed(data.registry.versions()):
        with suppress(StoreError):
            verdict = data.verdicts.of(name)
            if verdict is not None and (verdict.outcome, verdict.pointer) == ("promoted", pointer.sequence):
                return name
    return None


def _resumable(data: DataDirectory, config: Config, pointer: Pointer) -> str | None:
    """The newest run that was cut off, if it goes on from this champion, with these models and a teacher at hand."""
    for run in reversed(RunDirectory.unfinished(data.runs, PURPOSE)):
        with suppress(RunError):
            own = run.config()
            fits = (
                own.models.of_training == config.models.of_training
                and run.description().get("parent") == pointer.champion
            )
            is_taught = own.training.teacher != "live" or config.training.teacher == "live"
            if fits and is_taught and run.checkpoints.exist():
                return run.id
    return None
