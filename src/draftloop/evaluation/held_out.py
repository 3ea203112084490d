"""Choose the outputs to measure a draft on, and mark a measurement whose prompts were not held out. No mlx.

A figure from prompts that an adapter was trained on flatters that adapter. It may be measured, so that the first two
prompts give a first figure, but it is marked, and no decision uses it: gate, looks and export read the held-out
generations of the log themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.log import FailureLog
from ..data.records import Record
from ..data.usable import NEAR_TWO_SPLITS, describe_counts
from ..errors import DraftloopError, PromptError
from ..models.manifest import Manifest, read_manifest
from ..registry.registry import Registry
from .unseen import SeenPrompts, Trained

SEEN = "seen in training: flattering"
NOT_HELD_OUT = "not held out"
UNKNOWN = "not known to be held out"
_UNKNOWN_PART = "not all that was trained on is known here"


@dataclass(frozen=True, slots=True)
class MeasuredPrompt:
    """A prompt that is measured on.

    Attributes:
        group: its prompt group, or a name of its own: what it is counted by.
        opening: the text that decides its group (`prompt_groups.opening`).
    """

    group: str
    opening: str


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How many prompts of a measurement were used in training; near-duplicates count.

    Attributes:
        prompts: prompt groups measured on.
        for_training: of them, those of the splits `train` and `validation` here, and those in `seen`.
        seen: of them, those that the adapter, or one that it was built on, was trained on, as far as is known.
        adapter: what is compared with the bare draft, by name; None is nothing.
        is_known: whether all that the adapter, and whatever else is here, was trained on is known with its text.
    """

    prompts: int
    for_training: int
    seen: int
    adapter: str | None
    is_known: bool = True

    @property
    def heldout(self) -> bool | None:
        """Whether not one was for training; None where nobody knows of all that was trained on."""
        if self.for_training:
            return False
        return True if self.is_known else None

    @property
    def mark(self) -> str | None:
        """A few words for a table; None where the prompts are held out."""
        if self.seen:
            return SEEN
        return {True: None, False: NOT_HELD_OUT, None: UNKNOWN}[self.heldout]

    @property
    def sentence(self) -> str | None:
        """The mark with what was counted; None where the prompts are held out."""
        on_seen = f"{self.adapter} was trained on {self._of_all(self.seen)}" if self.seen else ""
        parts = [on_seen, self._said_of_splits(), "" if self.is_known else _UNKNOWN_PART]
        return None if self.mark is None else f"{self.mark}: {'; '.join(part for part in parts if part)}"

    def to_json(self) -> dict[str, Any]:
        """For the conditions of a report."""
        return {
            "heldout": self.heldout,
            "mark": self.mark,
            "prompts_for_training": self.for_training,
            "prompts_seen_in_training": self.seen,
        }

    def _said_of_splits(self) -> str:
        others = self.for_training - self.seen
        if not others:
            return ""
        if self.seen:
            return f"{others} more of the splits train or validation"
        spared = f", though {self.adapter} was not trained on them" if self.adapter and self.is_known else ""
        be = "is" if others == 1 else "are"
        return f"{self._of_all(others)} {be} of the splits train or validation{spared}"

    def _of_all(self, count: int) -> str:
        if count < self.prompts:
            return f"{count} of {self.prompts} prompts"
        return "the one prompt" if count == 1 else f"all {count} prompts"


@dataclass(frozen=True)
class LoggedGenerations:
    """Logged generations to measure on.

    Attributes:
        records: that can be used: the held-out ones; where there are none, those of the other splits.
        left_out: how many of those splits cannot be, by reason.
        near_two_splits: how many are near prompts of another split, and so in no measurement.
    """

    records: list[Record]
    left_out: Counter[str]
    near_two_splits: int


def check_logged(log: FailureLog) -> None:
    """Raise PromptError where the log holds no generation at all."""
    if next(log.records(), None) is None:
        raise PromptError(f"no generations in {log.path} yet: `collect-data` logs them; or give --prompts-file")


def generations_to_measure(log: FailureLog, why_not: Callable[[Record], str | None]) -> LoggedGenerations:
    """The generations of the log to measure on. The log's `damage` is that of this reading.

    Args:
        log: with generations in it.
        why_not: why a record cannot be used, in words to count by; None where it can be.

    Raises:
        PromptError: not one can be; the message counts why.
        StoreError: a newer draftloop wrote to this log.
    """
    left_out, read, near, what = Counter[str](), 0, 0, "logged"
    for kind, splits in (("held-out", {"heldout"}), ("logged", {"train", "validation"})):
        records = [(record, why_not(record)) for record in log.records(splits)]
        left_out.update(why for _, why in records if why is not None)
        read, near, what = read + len(records), near + log.near_two_splits, kind if records else what
        kept = [record for record, why in records if why is None]
        if kept:
            return LoggedGenerations(kept, left_out, near)
    reasons = left_out + Counter({NEAR_TWO_SPLITS: near})
    raise PromptError(
        f"none of {read + near} {what} generations can be used: {describe_counts(reasons)}; collect more with this "
        "target, or give --prompts-file"
    )


def check_held_out(asked: Iterable[MeasuredPrompt], log: FailureLog, adapter: tuple[str, Path] | None) -> HeldOut:
    """Look up which prompts were used in training.

    Args:
        asked: the prompts that are measured on, in the log or not.
        log: whose splits count.
        adapter: name and directory of the one that is compared; None is the bare draft alone.

    Raises:
        StoreError: a newer draftloop wrote to the log.
    """
    groups, measured, learned = log.groups(), set[str](), frozenset[str]()
    is_known = groups.all_have_text
    if adapter is not None:
        learned, is_whole = _learned(log, adapter[1])
        is_known = is_known and is_whole
    seen, for_training = set[str](), set[str]()
    for prompt in asked:
        measured.add(prompt.group)
        if not learned.isdisjoint(groups.groups_near(prompt)):
            seen.add(prompt.group)
        if groups.splits_near(prompt) - {"heldout"}:
            for_training.add(prompt.group)
    name = None if adapter is None else adapter[0]
    return HeldOut(len(measured), len(for_training | seen), len(seen), name, is_known)


def _learned(log: FailureLog, path: Path) -> tuple[frozenset[str], bool]:
    """The joined prompt groups that an adapter was trained on, and whether these are all."""
    groups = log.groups()
    trained = dict(_lineage(path))
    seen = SeenPrompts(trained, groups.group_of, groups.joined)
    if not all(one.groups for one in trained.values()):  # of before manifests had them
        for record in log.records():
            seen.note(record)
    have_text = all(groups.has_text(group) for one in trained.values() for group in one.groups)
    return seen.trained_on(path.name), have_text and seen.is_known(path.name)


def _lineage(path: Path) -> Iterable[tuple[str, Trained]]:
    """What the manifests of an adapter, and of those beside it that it was built on, say; nothing where one is missing.

    A directory from elsewhere may have a name of its own, and no manifest.
    """
    registry, name, names = Registry(path.parent), path.name, set[str]()
    with suppress(DraftloopError):  # what cannot be read is not known, and that is said
        manifest = read_manifest(path)
        while manifest is not None and name not in names:
            names.add(name)
            yield name, _trained(manifest)
            name = manifest.parent or ""
            manifest = registry.manifest(name) if name else None


def _trained(manifest: Manifest) -> Trained:
    return Trained(manifest.parent, frozenset(manifest.record_ids), frozenset(manifest.trained_groups))
