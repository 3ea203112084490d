"""Tell which generations are of prompts that their draft was not trained on. Knows manifests' lists; no files, no mlx.

A draft is accepted more on prompts that it was trained on, so only its other generations show how it does now. A prompt
counts as a whole: another generation of a prompt group that was trained on is not unseen either. Validation chooses the
weights, so its prompts are left out as well, and prompts that are near two splits. Of records that were deleted from
the log the manifest has the prompt groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from ..data.records import GroupOf, Record, own_group
from .drift import LoggedGeneration


@dataclass(frozen=True, slots=True)
class Trained:
    """The training of a version by its manifest: parent (None: the bare draft), records, their own prompt groups."""

    parent: str | None
    record_ids: frozenset[str]
    groups: frozenset[str] = frozenset()


class SeenPrompts:
    """The prompt groups that each version and those it was built on were trained on.

    Args:
        trained: by version.
        group_of: the joined prompt group of a record.
        joined: the joined prompt group of one by itself.
    """

    def __init__(
        self,
        trained: Mapping[str, Trained],
        group_of: GroupOf = own_group,
        joined: Callable[[str], str] = lambda group: group,
    ) -> None:
        self._trained = trained
        self._joined = joined
        self._own = group_of
        self._wanted = frozenset[str]().union(*(one.record_ids for one in trained.values()))
        self._group_of: dict[str, str] = {}
        self._groups = cache(self._groups_of)

    def note(self, record: Record) -> None:
        """Learn the group of a record that a version was trained on. All come before the first question."""
        if record.id in self._wanted:
            self._group_of[record.id] = self._own(record)

    def is_unseen(self, generation: LoggedGeneration) -> bool:
        """Whether the prompt of a generation had no part in the training of the draft that it was made with."""
        if generation.split in ("validation", None):
            return False
        return generation.adapter is None or generation.group not in self.trained_on(generation.adapter)

    def trained_on(self, version: str) -> frozenset[str]:
        """The joined prompt groups that a version, and those it was built on, were trained on, as far as is known."""
        return self._groups(version)

    def is_known(self, version: str) -> bool:
        """Whether all that it and those it was built on were trained on is known.

        It is not where a manifest is missing, or is of before manifests had groups and records of it are gone.
        """
        lineage = [*self._lineage(version)]
        whole = all(one.groups or one.record_ids <= self._group_of.keys() for one in lineage)
        return whole and bool(lineage) and lineage[-1].parent is None

    def _groups_of(self, version: str) -> frozenset[str]:
        groups = set[str]()
        for one in self._lineage(version):
            groups.update(self._group_of[i] for i in one.record_ids if i in self._group_of)
            groups.update(map(self._joined, one.groups))
        return frozenset(groups)

    def _lineage(self, version: str) -> Iterator[Trained]:
        names, name = set[str](), version
        while name in self._trained and name not in names:
            names.add(name)
            yield self._trained[name]
            name = self._trained[name].parent or ""
