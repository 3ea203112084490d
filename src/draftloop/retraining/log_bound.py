"""Keep the log within `data.max_log_mb`: `log compact` by hand, or a writer that finds it above. Loads no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from ..config import Config
from ..data.compaction import CompactedLog, compact_log, plan_compaction
from ..data.exchange import stored_bytes
from ..data_directory import DataDirectory
from ..errors import LockedError, NothingToDo, StoreError
from ..runtime.memory import MEGABYTE
from .needed import needed_records

ROOM = 0.2  # share of the bound that a compaction leaves free: it reads and writes the whole log
GROWTH = 0.1  # share of the bound by which a log that stayed above it grows until it is worth another try


@dataclass(frozen=True)
class LogCompaction:
    """A compaction, and the bound in bytes that it was for."""

    done: CompactedLog
    bound: int

    @property
    def is_met(self) -> bool:
        """Whether the log is within its bound now."""
        return self.done.after.total <= self.bound

    @property
    def why_not(self) -> str | None:
        """Why the bound is not met, and what to do; None where it is."""
        if self.is_met:
            return None
        sizes = {**self.done.needed, "prompt index": self.done.after.prompts}
        held = sorted(sizes.items(), key=lambda item: -item[1])
        left, bound = megabytes(self.done.after.total), megabytes(self.bound)
        return (
            f"{left} are left, above the bound of {bound}, and all of it is needed: "
            f"{', '.join(f'{megabytes(size)} {what}' for what, size in held if size)}; a verdict uses failures up "
            "(`retrain`), or raise data.max_log_mb"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self.done), "bound": self.bound, "met": self.is_met, "why_not": self.why_not}


def compact(data: DataDirectory, config: Config, *, dry_run: bool = False) -> LogCompaction:
    """Drop the oldest records that nothing needs, until a fifth of the bound is free. Writers go on meanwhile.

    Args:
        data: whose log is above its bound.
        config: the bound, and what needs how much.
        dry_run: change nothing; the result says what would be done.

    Raises:
        NothingToDo: there is no bound, or the log is within it.
        LockedError: somebody trains or gates here and may need any record: try again later.
        StoreError: the disk refused, or some of it is damaged; nothing acknowledged is lost.
    """
    bound, size = config.data.max_log_mb * MEGABYTE, stored_bytes(data.log, data.blobs).total
    if not bound:
        raise NothingToDo("data.max_log_mb is 0, so the log has no bound; --max-log-mb gives one")
    if size <= bound:
        raise NothingToDo(f"the log takes {megabytes(size)}, within its bound of {megabytes(bound)}")
    goal, needed = int(bound * (1 - ROOM)), partial(needed_records, data, config)
    if dry_run:
        return LogCompaction(plan_compaction(data.log, data.blobs, data.replay, needed, goal), bound)
    with data.training_lock(), data.presence.shown("log compact"):
        return LogCompaction(compact_log(data.log, data.blobs, data.replay, needed, goal), bound)


def is_due(data: DataDirectory, config: Config, last: LogCompaction | None = None) -> bool:
    """Whether a writer should `compact` now; it costs a few looks at files.

    Args:
        data: the directory.
        config: the bound.
        last: the latest one by this writer: where it could not meet the bound, some growth comes first.
    """
    bound, size = config.data.max_log_mb * MEGABYTE, stored_bytes(data.log, data.blobs).total
    least = bound if last is None or last.is_met else last.done.after.total + int(bound * GROWTH)
    return 0 < bound < size > least


class LogBound:
    """A writer's own care for the bound: to be called after its appends, on its thread.

    Args:
        data: whose log it writes.
        config: the bound, and what needs how much.
        say: told where the bound cannot be met, or the disk refuses.
    """

    def __init__(self, data: DataDirectory, config: Config, say: Callable[[str], None]) -> None:
        self._data, self._config, self._say = data, config, say
        self._last: LogCompaction | None = None

    def __call__(self) -> None:
        """Compact if it is time. Where a training is at work, a later call does it."""
        if not is_due(self._data, self._config, self._last):
            return
        try:
            self._last = compact(self._data, self._config)
        except (LockedError, NothingToDo):  # somebody trains, or has compacted meanwhile
            return
        except StoreError as error:
            self._say(f"the log is not brought within its bound: {error}")
            return
        if self._last.why_not:
            self._say(self._last.why_not)


def megabytes(size: int) -> str:
    """Bytes for a person."""
    return f"{size / MEGABYTE:,.1f} MB"
