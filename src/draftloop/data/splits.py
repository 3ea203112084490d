"""The split that a new prompt group gets by its hash, unless it is near to one that has a split. Knows no log."""

from __future__ import annotations

import hashlib

from .records import Split

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
