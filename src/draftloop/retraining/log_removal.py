"""Remove chosen records by hand, and deal with whatever still refers to them. Loads no model.

A run that could go on with them is given up, before they go. An open held-out epoch and a look that was begun go on
with the records that are left: the gate leaves out what is gone, and begins another epoch where too few prompts are
left. Of versions it is only said which were trained on them: weights do not forget.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from ..data.removal import RecordChoice, RemovedRecords, choose_records, removal_of, remove_records
from ..data_directory import DataDirectory
from ..errors import DraftloopError, NothingToDo
from ..training.run import RunDirectory
from .layer_trials import remove_left_trials

_NOTHING = "no record in log and replay buffer fits: nothing was removed"


@dataclass(frozen=True)
class TrainedVersion:
    """A version with chosen records in its training.

    Attributes:
        name: of the version.
        role: champion, previous or empty.
        records: how many of the chosen it was trained on; 0 where only a version that it was built on was.
        built_on: the nearest version with chosen records that it was built on; None where there is none.
    """

    name: str
    role: str
    records: int
    built_on: str | None

    @property
    def sentence(self) -> str:
        """For a person."""
        name = f"{self.name} (the {self.role})" if self.role else self.name
        on = f"is built on {self.built_on}" if self.built_on else ""
        trained = f"was trained on {self.records} of them" if self.records else ""
        return f"{name} {' and '.join(part for part in (trained, on) if part)}"


@dataclass(frozen=True)
class LogRemoval:
    """A removal, and what else it is about.

    Attributes:
        done: records and bytes.
        runs: trainings that were given up: they could have gone on with some of them.
        epochs: of each open held-out epoch that has some of them, a sentence.
        versions: that were trained on some of them, or built on such a one, oldest first.
        remedy: what takes their weights out of use, a sentence; None where the champion has none of them.
    """

    done: RemovedRecords
    runs: tuple[str, ...]
    epochs: tuple[str, ...]
    versions: tuple[TrainedVersion, ...]
    remedy: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        done = self.done
        return {
            "removed": done.removed,
            "kept": done.kept,
            "replayed": done.replayed,
            "sources": done.sources,
            "before": asdict(done.before),
            "after": asdict(done.after),
            "runs": self.runs,
            "epochs": self.epochs,
            "versions": [asdict(version) for version in self.versions],
            "remedy": self.remedy,
        }


def plan_removal(data: DataDirectory, choice: RecordChoice) -> LogRemoval:
    """What `remove_from_log` would do; nothing is changed, no lock is taken.

    Raises:
        NothingToDo: no record fits.
        StoreError: a newer draftloop wrote there, or this user may not read it.
    """
    planned = removal_of(data.log, data.blobs, choose_records(data.log, data.blobs, data.replay, choice))
    if not planned.ids:
        raise NothingToDo(_NOTHING)
    return _described(data, planned, [run.id for run in _runs_with(data, planned.ids)])


def remove_from_log(data: DataDirectory, choice: RecordChoice) -> LogRemoval:
    """Remove the chosen records, after whatever could go on with them.

    Raises:
        LockedError: somebody trains or gates here: try again later.
        NothingToDo, StoreError: as `plan_removal`; StoreError too where the disk refused.
    """
    if not data.exists:  # the lock would make it
        raise NothingToDo(_NOTHING)
    with data.training_lock(), data.presence.shown("log rm"):
        remove_left_trials(data)  # it has copies of records
        try:
            planned = plan_removal(data, choice)
        except NothingToDo:
            remove_records(data.log, data.blobs, data.replay, choice)  # what a kill left behind
            raise
        runs = _runs_with(data, planned.done.ids)
        for run in runs:
            if run.is_finished():  # its time limit ended it: only its checkpoint is in the way
                run.clear()
            else:
                run.give_up("records that it trained on were removed from the log")
        done = remove_records(data.log, data.blobs, data.replay, choice)
        return _described(data, done, [run.id for run in runs])


def _runs_with(data: DataDirectory, ids: frozenset[str]) -> list[RunDirectory]:
    return [run for run in RunDirectory.all(data.runs, data.files) if run.may_go_on_with(ids)]


def _described(data: DataDirectory, done: RemovedRecords, runs: list[str]) -> LogRemoval:
    versions = _trained_versions(data, done.ids)
    return LogRemoval(done, tuple(runs), tuple(_epochs_with(data, done.ids)), tuple(versions), _remedy(data, versions))


def _epochs_with(data: DataDirectory, ids: frozenset[str]) -> list[str]:
    """What becomes of each open held-out epoch that has some of these records, gone by now or not."""
    epochs = [epoch for epoch in data.verdicts.open_epochs() if not ids.isdisjoint(epoch.record_ids)]
    if not epochs:
        return []
    group_of = data.log.groups().group_of
    groups = {record.id: group_of(record) for record in data.log.records({"heldout"}) if record.id not in ids}
    sentences = []
    for epoch in epochs:
        left = {groups[record_id] for record_id in epoch.record_ids if record_id in groups}
        end = (
            f"it goes on with its other {len(left)} prompts"
            if len(left) >= epoch.min_heldout_prompts
            else f"{len(left)} of its prompts are left, too few, so the next attempt begins another epoch"
        )
        gone = sum(record_id in ids for record_id in epoch.record_ids)
        sentences.append(f"{gone} of them are in open held-out epoch {epoch.number}: {end}")
    return sentences


def _trained_versions(data: DataDirectory, ids: frozenset[str]) -> list[TrainedVersion]:
    """The versions that learned from some of these records, or are built on one that did; unreadable ones left out."""
    pointer, versions = data.registry.pointer(), dict[str, TrainedVersion]()
    roles = {pointer.previous: "previous champion", pointer.champion: "champion"}
    for name in sorted([*data.registry.pruned(), *data.registry.versions()], key=lambda name: (len(name), name)):
        with suppress(DraftloopError):  # `status` names it
            manifest = data.registry.manifest(name)
            records = len(ids.intersection(manifest.record_ids))
            built_on = manifest.parent if manifest.parent in versions else None
            if records or built_on:
                versions[name] = TrainedVersion(name, roles.get(name, ""), records, built_on)
    return list(versions.values())


def _remedy(data: DataDirectory, versions: list[TrainedVersion]) -> str | None:
    """How to use a draft again that none of the records had a part in."""
    pointer, with_them = data.registry.pointer(), {version.name for version in versions}
    if pointer.champion not in with_them:
        return None
    if pointer.previous is not None and pointer.previous not in with_them:
        return f"`draftloop adapters rollback` goes back to {pointer.previous}, which was trained on none of them"
    clean = [name for name in data.registry.versions() if name not in with_them]
    if clean:
        return f"`draftloop adapters promote {clean[-1]}` puts one into use that was trained on none of them"
    return "`draftloop adapters promote none` puts the bare draft into use"
