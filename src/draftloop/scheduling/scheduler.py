"""`Scheduler` is what cron, launchd and systemd have in common: show, install, read back and remove a unit."""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..errors import ScheduleError
from ..store.atomic import write_atomically
from ..store.files import FILES, storing
from .job import Daily, Every, ScheduledJob

RHYTHM = "rhythm"
TOOL_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Unit:
    """An installed unit, parsed.

    Attributes:
        when: its rhythm, or None where draftloop would not write such a rhythm.
        parts: RHYTHM, command, directory, log, niceness and the variables by their names, each to its value in words;
            those that this kind of unit has.
    """

    when: Every | Daily | None
    parts: Mapping[str, str]


class Scheduler(ABC):
    """A scheduler of this user.

    Args:
        environment: the user's variables, HOME among them.
    """

    kind: ClassVar[str]
    tool_missing: ClassVar[str]  # what the user can do where the scheduler's own tool is missing

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment

    @abstractmethod
    def render(self, job: ScheduledJob) -> dict[str, str]:
        """What `install` would write: place to text."""

    @abstractmethod
    def installed(self, identity: str) -> dict[str, str]:
        """What is in place now, as `render` names it; empty where nothing is. Raises ScheduleError: unreadable."""

    @abstractmethod
    def read(self, texts: Mapping[str, str]) -> Unit:
        """Parse what `render` or `installed` returned; a unit that somebody edited is no error."""

    @abstractmethod
    def is_active(self, identity: str) -> bool:
        """Whether the scheduler will start what is in place."""

    @abstractmethod
    def install(self, job: ScheduledJob) -> None:
        """Write the unit and enable it; after a refusal the unit of before is back.

        Raises:
            ScheduleError: the scheduler's tool is missing, or the scheduler refuses.
            StoreError: a file cannot be written.
        """

    @abstractmethod
    def remove(self, identity: str) -> None:
        """Disable the unit and delete it. Raises ScheduleError: as `install`; the unit is then still there."""

    def warnings(self) -> list[str]:
        """What may keep a job from running on this machine, each with its remedy."""
        return []

    def call(self, *arguments: str, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
        """Run the scheduler's own tool in plain English; the caller reads the exit code.

        Args:
            arguments: the tool's name, looked up on PATH, and its arguments.
            stdin: its input.
            variables: set beside those of this process.

        Raises:
            ScheduleError: there is no such tool, or it does not end.
        """
        environment = {**os.environ, "LC_ALL": "C", **variables}
        try:
            return subprocess.run(
                arguments, input=stdin, capture_output=True, timeout=TOOL_TIMEOUT_S, env=environment, check=False
            )
        except (FileNotFoundError, PermissionError):
            where = f"no `{arguments[0]}` was found on PATH ({environment.get('PATH')})"
            raise ScheduleError(f"{where}; {self.tool_missing}") from None
        except subprocess.TimeoutExpired:
            call = " ".join(arguments)
            raise ScheduleError(f"`{call}` did not end within {TOOL_TIMEOUT_S:g} s; try it by hand") from None


def refusal(done: subprocess.CompletedProcess[bytes]) -> str | None:
    """A failed call in one line: the command, its exit code and its message. None: it went well."""
    if done.returncode == 0:
        return None
    message = " ".join((done.stderr or done.stdout).decode(errors="replace").split()) or "without a message"
    return f"`{' '.join(done.args)}` ended with {done.returncode}: {message}"


class UnitFiles(Scheduler):
    """A scheduler that reads whole files of the user: they are written before it is called, and deleted after it."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__(environment)
        self._home = Path(environment.get("HOME") or Path.home())

    @abstractmethod
    def paths(self, identity: str) -> list[Path]:
        """Where the files of a job lie."""

    @abstractmethod
    def enable(self, identity: str) -> None:
        """Have the scheduler start the job from now on. Raises ScheduleError: it refuses."""

    @abstractmethod
    def disable(self, identity: str) -> None:
        """Have the scheduler start the job no more. Raises ScheduleError: it refuses."""

    def installed(self, identity: str) -> dict[str, str]:
        """The files that are there now."""
        return {str(path): path.read_text("utf-8", "replace") for path in self.paths(identity) if path.is_file()}

    def install(self, job: ScheduledJob) -> None:
        """As `Scheduler.install`."""
        before = self.installed(job.id)
        self.is_active(job.id)  # raises where the tool is missing, before anything is written
        try:
            self._write(self.render(job))
            self.enable(job.id)
        except ScheduleError:
            self._delete(job.id)
            self._write(before)
            raise

    def remove(self, identity: str) -> None:
        """As `Scheduler.remove`."""
        self.disable(identity)
        self._delete(identity)

    def _write(self, texts: Mapping[str, str]) -> None:
        for path in map(Path, texts):
            with storing(path):
                FILES.make_directory(path.parent)
                write_atomically(path, texts[str(path)].encode())

    def _delete(self, identity: str) -> None:
        for path in self.paths(identity):
            with storing(path):
                FILES.remove(path)


def clock_fields(when: Every | Daily) -> tuple[str, str] | None:
    """Minute and hour in cron's notation (`*`, `0`, `*/15`), or None where the clock does not repeat so."""
    if isinstance(when, Daily):
        return str(when.minute), str(when.hour)
    hours, minutes = divmod(when.minutes, 60)
    if hours == 0 and 60 % minutes == 0:
        return "*" if minutes == 1 else f"*/{minutes}", "*"
    if hours and minutes == 0 and 24 % hours == 0:
        return "0", {1: "*", 24: "0"}.get(hours, f"*/{hours}")
    return None


def when_of(minute: str, hour: str) -> Every | Daily | None:
    """The inverse of `clock_fields`, None for other fields; every 24 hours at 0:00 is once per day."""
    known: list[Every | Daily] = [Every(number) for number in range(1, 24 * 60)]
    known += [Daily(number // 60, number % 60) for number in range(24 * 60)]
    return next((when for when in known if clock_fields(when) == (minute, hour)), None)
