"""`read_overview` counts what a data directory holds, in one pass over the log. Loads no model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from .data.joined_groups import PromptGroups
from .data.records import Record
from .data_directory import DataDirectory
from .errors import AccessDenied, AdapterError, DraftloopError
from .evaluation.drift import LoggedGeneration, generation_of
from .evaluation.unseen import SeenPrompts, Trained


@dataclass
class Overview:
    """Counts of what was logged. A generation that was logged twice counts once.

    Attributes:
        generations: all; the next three are failures. Only failures of the split `train` can be trained on: they are
            new until a version that was trained after them has a verdict, then used. `failures_held_out` are those of
            the other two splits, validation too (the name is a JSON key). Those near two splits are in none of them.
        unused: the ids of the new ones.
        near_two_splits: generations whose prompt is near prompts of two splits: they are used in neither.
        failures_near_two_splits: failures among them.
        cancelled: generations that a client cancelled: they train, and nothing is measured on them, drift neither.
        other_pairs: generations of another target than the one that was asked for; not in the next three.
        prompts: all prompt groups, joined where near, of any target.
        heldout_prompts: prompt groups of the split `heldout`, joined where near, with an output of the target.
        stream: the generations that the drift test reads, in the order of the log.
        candidate: the newest version without a verdict, None where the newest has one.
        damage: lines of the log and versions that cannot be read.
        denied: the first of these that this user may not read; None if there is none.
    """

    generations: int = 0
    failures_new: int = 0
    failures_used: int = 0
    failures_held_out: int = 0
    unused: set[str] = field(default_factory=set)
    near_two_splits: int = 0
    failures_near_two_splits: int = 0
    cancelled: int = 0
    other_pairs: int = 0
    prompts: set[str] = field(default_factory=set)
    heldout_prompts: set[str] = field(default_factory=set)
    stream: list[LoggedGeneration] = field(default_factory=list)
    splits: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    candidate: str | None = None
    damage: list[str] = field(default_factory=list)
    denied: AccessDenied | None = None

    @property
    def ids(self) -> list[str]:
        """The ids of the stream."""
        return [one.id for one in self.stream]

    @property
    def failures_trainable(self) -> int:
        """Failures of the split `train`, used or not."""
        return self.failures_new + self.failures_used

    @property
    def failures(self) -> int:
        """Generations with a rejection."""
        return self.failures_new + self.failures_used + self.failures_held_out + self.failures_near_two_splits

    def note(self, error: DraftloopError, of: str = "") -> None:
        """Count something as damage, or as unreadable for this user."""
        self.damage.append(f"{of}{error}")
        if isinstance(error, AccessDenied):
            self.denied = self.denied or error


def read_overview(data: DataDirectory, target: str | None = None, draft: str | None = None) -> Overview:
    """Read the log and the versions' manifests once.

    Args:
        data: where they are.
        target: the fingerprint of a target; failures, held-out prompts and the stream are of it alone. None is any.
        draft: the fingerprint of a draft; only a version made for it is a candidate. None is any.

    Raises:
        StoreError: a newer draftloop wrote some of it.
    """
    overview = Overview()
    used, trained = _used(data, overview, draft)
    groups = data.log.groups()
    prompts, seen = SeenPrompts(trained, groups.group_of, groups.joined), set[str]()
    for record in data.log.records():
        if record.id not in seen:
            seen.add(record.id)
            prompts.note(record)
            _count(overview, record, used, target, groups)
    overview.stream = [replace(one, unseen=prompts.is_unseen(one)) for one in overview.stream]
    try:
        data.registry.resolve("champion")
    except (AdapterError, AccessDenied) as error:
        overview.note(error)
    overview.damage = [f"line {one.line_number}: {one.reason}" for one in data.log.damage] + overview.damage
    return overview


def damaged_files(data: DataDirectory, but_of: str | None = None) -> list[str]:
    """Damage of versions whose manifest can be read, and of the replay buffer, a line for each.

    Reads every file, except those of the version `but_of`.
    """
    registry, damage = data.registry, []
    previous = registry.previous()
    for name in registry.versions():
        role = ", to which `adapters rollback` would go back" if name == previous else ""
        try:
            registry.manifest(name)
        except DraftloopError:
            continue  # the caller has found that already
        try:
            if name != but_of:
                registry.verify(registry.root / name)
        except DraftloopError as error:
            damage.append(f"{name}{role}: {error}")
    try:
        data.replay.records()
    except AccessDenied as error:
        return [*damage, f"replay buffer: {error}"]
    return [*damage, *(f"replay buffer, line {one.line_number}: {one.reason}" for one in data.replay.damage)]


def _count(overview: Overview, record: Record, used: set[str], target: str | None, groups: PromptGroups) -> None:
    group = groups.group_of(record)
    overview.generations += 1
    overview.prompts.add(group)
    overview.splits[record.split] += 1
    overview.sources[record.source] += 1
    overview.cancelled += record.finish == "cancelled"
    if target is not None and record.pair.target != target:
        overview.other_pairs += 1
        return
    in_two_splits = groups.is_in_two_splits(group)
    overview.near_two_splits += in_two_splits
    if record.target_output and record.finish != "cancelled":
        generation = replace(generation_of(record, lambda _: group), came_before=groups.has_dropped(group))
        overview.stream.append(replace(generation, split=None) if in_two_splits else generation)
        if record.split == "heldout" and not in_two_splits:
            overview.heldout_prompts.add(generation.group)
    if record.is_failure:
        if in_two_splits:
            overview.failures_near_two_splits += 1
        elif record.split != "train":
            overview.failures_held_out += 1
        elif record.id in used:
            overview.failures_used += 1
        else:
            overview.failures_new += 1
            overview.unused.add(record.id)


def _used(data: DataDirectory, overview: Overview, draft: str | None) -> tuple[set[str], dict[str, Trained]]:
    """Records that gated versions were trained on or were offered, and what every version was trained on.

    The newest version without a verdict, if it is for this draft, becomes the candidate.
    """
    registry, used, trained = data.registry, set[str](), dict[str, Trained]()
    now, pruned = registry.pointer(), registry.pruned()
    for name in [*pruned, *registry.versions()]:
        overview.candidate = None
        try:
            verdict, manifest = data.verdicts.of(name), registry.manifest(name)
        except DraftloopError as error:
            overview.note(error, f"{name}: ")
            continue
        trained[name] = Trained(manifest.parent, frozenset(manifest.record_ids), frozenset(manifest.trained_groups))
        in_use = name in (now.champion, now.previous)
        if verdict is not None and verdict.outcome == "discarded" and not in_use:
            continue
        if verdict is not None or in_use:
            used.update(manifest.record_ids, manifest.passed_over_ids)
        elif name not in pruned and (draft is None or manifest.pair is None or manifest.pair.draft == draft):
            overview.candidate = name
    return used, trained
