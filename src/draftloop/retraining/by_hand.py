"""A version that a person puts into use: the pointer moves, it is written down, and the watch over it begins."""

from __future__ import annotations

from ..config import Config
from ..data_directory import DataDirectory
from ..registry.registry import Pointer
from .gate_step import watch_from_now


def promote_by_hand(data: DataDirectory, config: Config, version: str | None, why: str) -> Pointer:
    """Make a version the champion without asking the gate.

    Args:
        data: its directory.
        config: of the gate, for the watch that begins.
        version: `vNNNN`; None is the bare draft.
        why: for the audit.

    Raises:
        AdapterError: there is no such version, or it is damaged; the pointer did not move.
        StoreError: the disk refused.
    """
    before = data.registry.pointer()
    pointer = data.registry.promote(version, why)
    if version is not None:
        data.verdicts.give_by_hand(version, before.champion, before.sequence, why)
    watch_from_now(data, config, pointer)
    return pointer


def rollback_by_hand(data: DataDirectory, config: Config, why: str) -> Pointer:
    """Go back to the champion before. Args as `promote_by_hand`; AdapterError too where nothing was ever promoted."""
    pointer = data.registry.rollback(why)
    watch_from_now(data, config, pointer)
    return pointer
