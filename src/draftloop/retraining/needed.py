"""Which records of a log are still needed, by what needs them. Loads no model, changes nothing.

All other records are history: failures that a verdict was given on, what was accepted whole (the replay buffer keeps
its own), validation, held-out generations beyond the newest, and generations of drafts that are in use no more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

from ..config import Config
from ..data.log_position import position_after
from ..data_directory import DataDirectory
from ..errors import DraftloopError, RunError
from ..evaluation.drift import FALL_REFERENCE, LoggedGeneration, StreamKey
from ..evaluation.looks import Watching
from ..registry.registry import Pointer
from ..status import read_overview
from ..store.sealed import DamagedFile
from ..training.run import PARTS, RunDirectory
from .facts import History


def needed_records(data: DataDirectory, config: Config) -> dict[str, set[str]]:
    """The ids of the records that a compaction must keep, by what needs them, in words for a person.

    Args:
        data: whose lock of trainings the caller holds, or it may begin to need others meanwhile.
        config: how many generations drift compares with, and the gate scores.

    Raises:
        StoreError: the pointer is damaged, a newer draftloop wrote some of it, or this user may not read it.
    """
    overview = read_overview(data)
    if overview.denied is not None:  # nobody knows what it would have said
        raise overview.denied
    pointer, watching = data.registry.pointer(), None
    with suppress(DamagedFile):  # it begins anew, at the end of the log
        watching = data.promotion_watch.of(pointer)
    looks = [record_id for look in (watching.made if watching else ()) for record_id in look.record_ids]
    epochs = [record_id for epoch in data.verdicts.open_epochs() for record_id in epoch.record_ids]
    return {
        "unused failures": overview.unused,
        "open held-out epochs": set(epochs),
        "candidates and old manifests": _of_versions(data, pointer),
        "trainings to be resumed": _of_runs(data),
        "looks and drift": set(looks) | _of_streams(data, config, pointer, watching, overview.stream),
        "newest held-out generations": _newest_held_out(overview.stream, config.gate.max_heldout_generations),
    }


def _of_versions(data: DataDirectory, pointer: Pointer) -> set[str]:
    """The records of candidates, one of each draft at most, and of manifests that do not name their prompt groups."""
    registry, needed, newest = data.registry, set[str](), set[str | None]()
    for name in reversed([*registry.pruned(), *registry.versions()]):
        try:
            verdict, manifest = data.verdicts.of(name), registry.manifest(name)
        except DraftloopError:  # `status` names it
            continue
        draft = manifest.pair.draft if manifest.pair else None
        is_candidate = draft not in newest and verdict is None and name not in (pointer.champion, pointer.previous)
        newest.add(draft)
        if is_candidate or not manifest.trained_groups:
            needed.update(manifest.record_ids, manifest.passed_over_ids if is_candidate else ())
    return needed


def _of_runs(data: DataDirectory) -> set[str]:
    """The records of the trainings that can go on; without one of them they could not."""
    needed = set[str]()
    for run in RunDirectory.all(data.runs):
        if run.checkpoints.exist():
            with suppress(RunError):
                mixture = run.mixture()
                needed.update(*(mixture.get(part, ()) for part in PARTS))
    return needed


def _of_streams(
    data: DataDirectory,
    config: Config,
    pointer: Pointer,
    watching: Watching | None,
    stream: Sequence[LoggedGeneration],
) -> set[str]:
    """Where the last verdict and the last promotion stand in the log, and what drift compares with."""
    needed, entries = set[str](), data.audit.entries()
    for target in (None, *dict.fromkeys(one.key.target for one in stream)):
        own = [one for one in stream if target in (None, one.key.target)]
        ids = [one.id for one in own]
        # 1. The last generation before each place; the places are found by it.
        history = History(entries, target)
        settled = history.settled(ids)
        needed.update(ids[:settled] if history.counts else ids[max(0, settled - 1) : settled])
        promoted = position_after(watching.mark, ids) if watching else 0
        needed.update(ids[max(0, promoted - 1) : promoted])
        # 2. The beginning of each stream of the champion, and the end of the previous draft's.
        unseen = [one for one in own[settled:] if one.unseen and one.adapter == pointer.champion]
        before = [one for one in own if one.unseen and one.adapter == pointer.previous] if pointer.sequence else []
        needed.update(one for ids in _by_stream(unseen).values() for one in ids[: config.drift.reference])
        needed.update(one for ids in _by_stream(before).values() for one in ids[-FALL_REFERENCE:])
    return needed


def _by_stream(generations: Sequence[LoggedGeneration]) -> dict[StreamKey, list[str]]:
    ids: dict[StreamKey, list[str]] = defaultdict(list)
    for one in generations:
        ids[one.key].append(one.id)
    return ids


def _newest_held_out(stream: Sequence[LoggedGeneration], most: int) -> set[str]:
    """Of every target and source as many as the gate scores, for its next epoch, looks and benchmarks.

    The gate takes one of each prompt group before a second of any, so the newest of each group stay, and where these
    are fewer than `most`, the newest of the others too.
    """
    newest_first: dict[tuple[str, str], list[LoggedGeneration]] = defaultdict(list)
    for one in reversed(stream):
        if one.split == "heldout":
            newest_first[one.key.target, one.key.source].append(one)
    needed = set[str]()
    for generations in newest_first.values():
        firsts = {one.group: one.id for one in reversed(generations)}  # of each group the newest is the last to be put
        ranked = sorted(generations, key=lambda one: firsts[one.group] != one.id)  # stable: newest first in each half
        needed.update(one.id for one in ranked[:most])
    return needed
