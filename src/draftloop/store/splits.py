"""Which split a prompt group belongs to, for ever. Knows no file: it is told what the log already fixed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ..records import Split

FIRST_TRAIN_GROUPS = 10
TRAIN_SHARE = 0.70
VALIDATION_SHARE = 0.10  # held out: the rest
HELDOUT_SHARE = 1.0 - TRAIN_SHARE - VALIDATION_SHARE
_SALT = b"draftloop splits 1:"


def hashed_split(group: str) -> Split:
    """The split that the salted hash of a group gives: 70% train, 10% validation, 20% held out."""
    digest = hashlib.sha256(_SALT + group.encode()).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    if share < TRAIN_SHARE:
        return "train"
    return "validation" if share < TRAIN_SHARE + VALIDATION_SHARE else "heldout"


class Splits:
    """The split of every group met so far: fixed at its first record and looked up ever after."""

    def __init__(self) -> None:
        self._known: dict[str, Split] = {}

    def learn(self, group: str, split: Split) -> None:
        """Take over what a record of the log says; the first one of a group counts."""
        self._known.setdefault(group, split)

    def split_for(self, group: str) -> Split:
        """The split of the next record of `group`: its own, `train` among the first ten groups, or the hash's."""
        return self.splits_for([group])[0]

    def splits_for(self, groups: Iterable[str]) -> list[Split]:
        """The splits of the next records, in their order, as if each were learnt before the one after it."""
        fresh: dict[str, Split] = {}
        found: list[Split] = []
        for group in groups:
            split = self._known.get(group) or fresh.get(group)
            if split is None:
                first = len(self._known) + len(fresh) < FIRST_TRAIN_GROUPS
                split = fresh[group] = "train" if first else hashed_split(group)
            found.append(split)
        return found
