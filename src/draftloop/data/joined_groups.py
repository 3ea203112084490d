"""`PromptGroups` joins near-duplicate prompt groups of a log, and knows the splits of each. Knows no file and no model.

The lines of the log stay as they are. `learn` takes the prompt and the split of every line, and joins groups that share
a near key, at once and for good; the result does not depend on the order of the lines. A joined group with lines in two
splits is used in neither: what is trained on in one would be measured on in the other. A new prompt gets the split of
what it is near to, so two splits come of old logs, and of a prompt near two others that are not near each other.

    groups = log.groups()
    groups.group_of(record)          the joined group, which every test counts as one
    groups.in_two_splits(record)     True: it is used in no split
    groups.splits_near(record)       of any record, in the log or not: the splits of what it is near to
    groups.groups_near(record)       and the joined groups of that
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from .prompt_groups import near_keys, prompt_group
from .prompt_index import KnownPrompt
from .records import Split
from .splits import FIRST_TRAIN_GROUPS, hashed_split

_BITS: dict[Split, int] = {"train": 1, "validation": 2, "heldout": 4}
_RECENT = 1 << 16  # keys that are held in a dict, at 100 bytes each; the others take 12


class Opened(Protocol):
    """What a group needs of a record: the text that decides it."""

    @property
    def opening(self) -> str:
        """By `prompt_groups.opening`."""
        ...


class PromptGroups:
    """The groups of one log, joined where they are near. Each has a number, in the order in which they came."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._first: list[Split] = []  # of a group by itself: of its first line
        self._parents = array("l")
        self._names: list[str] = []  # of a root: the first name of what it joins, by the alphabet
        self._splits = bytearray()  # of a root: the bits of all splits that lines of it are in
        self._roots = 0
        self._in_two: set[int] = set()  # roots
        self._dropped: set[int] = set()  # roots with lines that are gone
        self._without_text: set[int] = set()  # known by name alone
        self._owners = _Owners()

    def learn_trained(self, group: str) -> None:
        """Note that the group of this name was trained on; until a prompt of it is learnt, nothing else is near it."""
        self._learn_name(group, "train")

    def learn_known(self, prompt: KnownPrompt) -> None:
        """Learn what the index has of a group, as from its lines; without its keys, nothing else is near it yet."""
        for split in prompt.splits:
            if prompt.keys is None:
                self._learn_name(prompt.group, split)
            else:
                self._learn(prompt.group, split, partial(tuple, prompt.keys))
        if prompt.dropped:
            self._dropped.add(self._root(self._numbers[prompt.group]))

    def learn(self, opening: str, split: Split) -> str:
        """Learn a line of the log; returns its prompt group, not joined."""
        group = prompt_group(opening)
        self._learn(group, split, lambda: near_keys(opening))
        return group

    def _learn_name(self, group: str, split: Split) -> None:
        number = self._numbers.get(group)
        if number is None:
            number = self._begin(group, split)
            self._without_text.add(number)
        self._add_split(number, split)

    def _learn(self, group: str, split: Split, keys_of: Callable[[], Sequence[int]]) -> None:
        number = self._numbers.get(group)
        if number is None or number in self._without_text:
            number = self._begin(group, split) if number is None else number
            self._without_text.discard(number)
            keys = keys_of()
            for other in self._owners.of(keys):
                self._join(number, other)
            self._owners.add(keys, number)
        self._add_split(number, split)

    def _add_split(self, number: int, split: Split) -> None:
        root = self._root(number)
        self._splits[root] |= _BITS[split]
        self._note(root)

    def group_of(self, record: Opened) -> str:
        """The joined group of a record."""
        return self.joined(prompt_group(record.opening))

    def joined(self, group: str) -> str:
        """The joined group of a prompt group: the first name in it by the alphabet; of one not met, itself."""
        number = self._numbers.get(group)
        return group if number is None else self._names[self._root(number)]

    def in_two_splits(self, record: Opened) -> bool:
        """Whether lines of the joined group of this record lie in two splits or more."""
        return bool(self._in_two) and self.is_in_two_splits(prompt_group(record.opening))

    def is_in_two_splits(self, group: str) -> bool:
        """`in_two_splits` of a prompt group."""
        number = self._numbers.get(group)
        return number is not None and self._root(number) in self._in_two

    @property
    def all_have_text(self) -> bool:
        """Whether a text of every group that was trained on is known; not where the log was deleted since."""
        return not self._without_text

    def has_text(self, group: str) -> bool:
        """Whether a text of a prompt group was learnt, so that what is near to it is known."""
        return group in self._numbers and self._numbers[group] not in self._without_text

    def has_dropped(self, group: str) -> bool:
        """Whether a compaction dropped lines of the joined group of a prompt group."""
        number = self._numbers.get(group)
        return number is not None and self._root(number) in self._dropped

    @property
    def groups_in_two_splits(self) -> int:
        """How many joined groups lie in two splits or more."""
        return len(self._in_two)

    def splits_near(self, record: Opened) -> set[Split]:
        """The splits of the lines that a record's prompt is near to, those of the very same prompt included."""
        bits = 0
        for root in self._near(record.opening, near_keys(record.opening)):
            bits |= self._splits[root]
        return {split for split, bit in _BITS.items() if bits & bit}

    def groups_near(self, record: Opened) -> set[str]:
        """The joined groups of what a record's prompt is near to, and its own, whether or not it was met."""
        near = self._near(record.opening, near_keys(record.opening))
        return {self._names[root] for root in near} | {self.joined(prompt_group(record.opening))}

    def splits_for(self, openings: Iterable[str]) -> list[Split]:
        """The splits of the next lines, in their order, as if each were learnt before the one after it.

        Each is the first split of its group; else that of the first group that it is near to; else `train` for the
        first FIRST_TRAIN_GROUPS groups, and the hash's after them.
        """
        fresh: dict[str | int, Split] = {}  # by group and by near key
        splits: list[Split] = []
        began = 0
        for opening in openings:
            group = prompt_group(opening)
            number = self._numbers.get(group)
            # 1. The split of the group itself.
            split = fresh.get(group) if number is None else self._first[number]
            if split is None:
                # 2. The split of the first group that it is near to.
                keys = near_keys(opening)
                near = self._near(opening, keys)
                split = self._first[min(near)] if near else next((fresh[key] for key in keys if key in fresh), None)
                if split is None:
                    # 3. A split for a new group.
                    first = self._roots + began < FIRST_TRAIN_GROUPS
                    split, began = "train" if first else hashed_split(group), began + 1
                fresh.update(dict.fromkeys([group, *keys], split))
            splits.append(split)
        return splits

    def _near(self, opening: str, keys: Sequence[int]) -> set[int]:
        """Roots of what shares a key or is the very group."""
        number = self._numbers.get(prompt_group(opening))
        own = [] if number is None else [number]
        return {self._root(number) for number in (*own, *self._owners.of(keys))}

    def _begin(self, group: str, split: Split) -> int:
        number = self._numbers[group] = len(self._names)
        self._first.append(split)
        self._names.append(group)
        self._parents.append(number)
        self._splits.append(0)
        self._roots += 1
        return number

    def _root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    def _join(self, one: int, other: int) -> None:
        """The root that came first stays one."""
        low, high = sorted((self._root(one), self._root(other)))
        if low == high:
            return
        self._parents[high] = low
        self._names[low] = min(self._names[low], self._names[high])
        self._splits[low] |= self._splits[high]
        self._roots -= 1
        self._in_two.discard(high)
        if high in self._dropped:
            self._dropped.remove(high)
            self._dropped.add(low)
        self._note(low)

    def _note(self, root: int) -> None:
        if self._splits[root].bit_count() > 1:
            self._in_two.add(root)


def joined_groups(openings: Iterable[str]) -> list[str]:
    """The joined group of each of some prompts among themselves."""
    groups = PromptGroups()
    return [groups.joined(group) for group in [groups.learn(opening, "heldout") for opening in openings]]


class _Owners:
    """Which group has a near key: one of them, for all that share it are joined. Millions of keys fit into memory."""

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._keys = np.empty(0, np.int64)  # sorted
        self._numbers = np.empty(0, np.int32)

    def of(self, keys: Sequence[int]) -> list[int]:
        """The owners of those keys that have one."""
        owners = [self._recent[key] for key in keys if key in self._recent]
        if keys and len(self._keys):
            wanted = np.array(keys, np.int64)
            at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            owners += self._numbers[at[self._keys[at] == wanted]].tolist()
        return owners

    def add(self, keys: Sequence[int], number: int) -> None:
        """A key keeps the owner that it has."""
        for key in keys:
            self._recent.setdefault(key, number)
        if len(self._recent) > max(_RECENT, len(self._keys) // 8):
            both = np.concatenate([self._keys, np.fromiter(self._recent, np.int64, len(self._recent))])
            numbers = np.concatenate([self._numbers, np.fromiter(self._recent.values(), np.int32, len(self._recent))])
            order = np.argsort(both, kind="stable")
            self._keys, self._numbers = both[order], numbers[order]
            self._recent = {}
