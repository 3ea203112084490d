"""launchd agents and systemd user units: files of the user, of which a manager is told. Knows not what they say."""

from __future__ import annotations

import getpass
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from ..errors import ScheduleError
from ..store.atomic import write_atomically
from ..store.files import FILES, storing
from .job import ScheduledJob
from .readback import Unit, read_launchd, read_systemd
from .tool import call_tool, what_it_said
from .units import launchd_label, launchd_plist, systemd_name, systemd_units

_LAUNCHD_REMEDY = "launchd is macOS's own; elsewhere choose --kind systemd or --kind cron"
_SYSTEMD_REMEDY = "it comes with systemd; where that is not used choose --kind cron, or on macOS --kind launchd"


class _UnitFiles(ABC):
    """What both have in common: whole files, written before and removed after the manager is told.

    Args:
        environment: variables of the user, HOME among them.
    """

    kind: ClassVar[str]

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._home = Path(environment.get("HOME") or Path.home())

    @abstractmethod
    def render(self, job: ScheduledJob) -> dict[str, str]:
        """Path to text of every file."""

    @abstractmethod
    def read(self, texts: Mapping[str, str]) -> Unit:
        """What they say."""

    @abstractmethod
    def paths(self, identity: str) -> list[Path]:
        """Where the files of a job lie."""

    @abstractmethod
    def is_active(self, identity: str) -> bool:
        """Whether the manager will start it."""

    def found(self, identity: str) -> dict[str, str]:
        """The files that are there now."""
        return {str(path): path.read_text("utf-8", "replace") for path in self.paths(identity) if path.is_file()}

    def install(self, job: ScheduledJob) -> None:
        """Write the files and have the manager take them; what was there before is back where it does not.

        Raises:
            ScheduleError: no such manager, or it refuses.
            StoreError: a file that cannot be written.
        """
        before = self.found(job.id)
        self.is_active(job.id)  # raises where there is no such manager, before anything is written
        try:
            self._write(self.render(job))
            self._enable(job.id)
        except ScheduleError:
            self._delete(job.id)
            self._write(before)
            raise

    def remove(self, identity: str) -> None:
        """Have the manager forget the job, then remove the files.

        Raises:
            ScheduleError: no such manager, or it refuses; the files are then still there.
        """
        self._disable(identity)
        self._delete(identity)
        self._forget()

    def warnings(self, _job: ScheduledJob) -> list[str]:
        """What may keep it from running."""
        return []

    def _write(self, texts: Mapping[str, str]) -> None:
        for path in map(Path, texts):
            with storing(path):
                FILES.make_directory(path.parent)
                write_atomically(path, texts[str(path)].encode())

    def _delete(self, identity: str) -> None:
        for path in self.paths(identity):
            with storing(path):
                FILES.remove(path)

    @abstractmethod
    def _enable(self, identity: str) -> None:
        """Have the manager start it from now on."""

    @abstractmethod
    def _disable(self, identity: str) -> None:
        """Have the manager start it no more."""

    @abstractmethod
    def _forget(self) -> None:
        """Tell the manager that files are gone."""


class Launchd(_UnitFiles):
    """An agent of the user who is logged in to a Mac.

    Args:
        pause: seconds between two tries of what launchd refuses while it still ends the agent of before.
    """

    kind = "launchd"

    def __init__(self, environment: Mapping[str, str] = os.environ, pause: float = 1.0) -> None:
        super().__init__(environment)
        self._pause = pause
        self._domain = f"gui/{os.getuid()}"

    def render(self, job: ScheduledJob) -> dict[str, str]:
        """The property list."""
        return {str(path): launchd_plist(job) for path in self.paths(job.id)}

    def read(self, texts: Mapping[str, str]) -> Unit:
        """What the property list says."""
        return read_launchd("".join(texts.values()))

    def paths(self, identity: str) -> list[Path]:
        """In the user's LaunchAgents."""
        return [self._home / "Library" / "LaunchAgents" / f"{launchd_label(identity)}.plist"]

    def is_active(self, identity: str) -> bool:
        """Whether launchd has it loaded."""
        return self._call("print", self._target(identity)) is None

    def _enable(self, identity: str) -> None:
        if self.is_active(identity):
            self._disable(identity)
        self._call("enable", self._target(identity))  # one that the user once disabled is not taken otherwise
        path = str(self.paths(identity)[0])
        for _ in range(5):
            refusal = self._call("bootstrap", self._domain, path)
            if refusal is None:
                return
            time.sleep(self._pause)
        raise ScheduleError(f"launchd did not take {path}; what lies there is as it was before: {refusal}")

    def _disable(self, identity: str) -> None:
        refusal = self._call("bootout", self._target(identity))
        if refusal is not None and self.is_active(identity):
            raise ScheduleError(f"launchd did not let go of the agent: {refusal}")

    def _target(self, identity: str) -> str:
        return f"{self._domain}/{launchd_label(identity)}"

    def _call(self, *arguments: str) -> str | None:
        """What launchctl said when it refused, or None."""
        done = call_tool(["launchctl", *arguments], _LAUNCHD_REMEDY)
        return what_it_said(done) if done.returncode else None

    def _forget(self) -> None:
        """launchd forgot the job when it was disabled."""


class Systemd(_UnitFiles):
    """A service and its timer, of the user's own manager."""

    kind = "systemd"

    def render(self, job: ScheduledJob) -> dict[str, str]:
        """Service and timer."""
        return {str(self._folder / name): text for name, text in systemd_units(job).items()}

    def read(self, texts: Mapping[str, str]) -> Unit:
        """What service and timer say."""
        return read_systemd("".join(texts.values()))

    def paths(self, identity: str) -> list[Path]:
        """In the user's configuration."""
        return [self._folder / f"{systemd_name(identity)}.{ending}" for ending in ("service", "timer")]

    def is_active(self, identity: str) -> bool:
        """Whether the timer runs, and will after the next login."""
        timer = f"{systemd_name(identity)}.timer"
        return all(self._call(asked, "--quiet", timer) is None for asked in ("is-enabled", "is-active"))

    def warnings(self, _job: ScheduledJob) -> list[str]:
        """What may keep it from running: a user's manager ends with the last session unless the user lingers."""
        if (Path("/var/lib/systemd/linger") / getpass.getuser()).exists():
            return []
        return ["it runs while you are logged in; `loginctl enable-linger` lets it run after that too"]

    @property
    def _folder(self) -> Path:
        configured = Path(self._environment.get("XDG_CONFIG_HOME") or self._home / ".config")
        return (configured if configured.is_absolute() else self._home / ".config") / "systemd" / "user"

    def _enable(self, identity: str) -> None:
        timer = f"{systemd_name(identity)}.timer"
        for arguments in (["daemon-reload"], ["enable", timer], ["restart", timer]):  # restart: a new interval counts
            refusal = self._call(*arguments)
            if refusal is not None:
                raise ScheduleError(f"systemd did not take {timer}; its files are as they were before: {refusal}")

    def _disable(self, identity: str) -> None:
        refusal = self._call("disable", "--now", f"{systemd_name(identity)}.timer")
        if refusal is not None:
            raise ScheduleError(f"systemd did not let go of the timer: {refusal}")

    def _forget(self) -> None:
        self._call("daemon-reload")

    def _call(self, *arguments: str) -> str | None:
        """What systemctl said when it refused, or None."""
        runtime = self._environment.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"  # `su` leaves it out
        done = call_tool(["systemctl", "--user", *arguments], _SYSTEMD_REMEDY, XDG_RUNTIME_DIR=runtime)
        return what_it_said(done) if done.returncode else None
