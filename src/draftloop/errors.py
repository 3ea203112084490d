"""One exception type per kind of mistake, each with the exit code that the command line gives it.

A message says what was found, what was expected and what to do next. Imports nothing, so every module can use it.
"""

from __future__ import annotations

from typing import ClassVar


class DraftloopError(Exception):
    """Base of every error that is reported as one line instead of a traceback."""

    exit_code: ClassVar[int] = 1


class UsageError(DraftloopError):
    """A mistake in what was asked for; nothing was started."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file, environment variable or flag that cannot be used."""


class PromptError(UsageError):
    """A prompts file that cannot be read, or a run in which no prompt was usable."""


class PairError(UsageError):
    """A target and a draft that cannot work together."""


class AdapterError(UsageError):
    """An adapter that is missing, damaged, or made for another draft."""


class AdapterDamaged(AdapterError):
    """A version of which a file is not what was written."""

    exit_code = 1


class RunError(UsageError):
    """A training run that cannot be resumed, or training data that gives nothing to train on."""


class ScheduleError(UsageError):
    """A schedule that cannot be put in place, or a scheduler that is missing or refuses."""


class ExportError(UsageError):
    """An export that cannot be made as asked."""


class ServeError(UsageError):
    """A server that cannot be started as asked."""


class StoreError(DraftloopError):
    """The store cannot be read or written as it must: damage, a newer schema, a full disk."""


class AccessDenied(StoreError):
    """A file or directory that this user may not read: it may well be whole, so nothing is deleted for it."""


class TrainingFailed(DraftloopError):
    """Training stopped because its numbers went wrong."""


class BatchesUnusable(TrainingFailed):
    """Too many micro-batches in a row could not be trained on."""


class ChampionMoved(DraftloopError):
    """The champion is another one than a decision was made against."""

    exit_code = 12


class NothingToDo(DraftloopError):
    """There was no work; not a fault."""

    exit_code = 10


class LockedError(DraftloopError):
    """Another process holds the lock."""

    exit_code = 13


class Interrupted(DraftloopError):
    """Stopped by Ctrl-C or SIGTERM after everything acknowledged was kept."""

    exit_code = 130
