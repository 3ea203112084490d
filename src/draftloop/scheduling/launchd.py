"""launchd: an agent of the user who is logged in to a Mac, one property list per data directory."""

from __future__ import annotations

import os
import plistlib
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from ..errors import ScheduleError
from .job import STOP_SECONDS, Daily, Every, ScheduledJob
from .scheduler import RHYTHM, Unit, UnitFiles, refusal, when_of

_PARTS = {"WorkingDirectory": "directory", "StandardOutPath": "log", "Nice": "niceness"}


class Launchd(UnitFiles):
    """launchd, by way of `launchctl`.

    Args:
        environment: as for every scheduler.
        pause: seconds between two tries: launchd refuses an agent while it still ends the earlier one.
    """

    kind = "launchd"
    tool_missing = "launchd is macOS's own; elsewhere choose --kind systemd or --kind cron"

    def __init__(self, environment: Mapping[str, str] = os.environ, pause: float = 1.0) -> None:
        super().__init__(environment)
        self._pause = pause
        self._domain = f"gui/{os.getuid()}"

    def render(self, job: ScheduledJob) -> dict[str, str]:
        """The property list."""
        return {str(path): launchd_plist(job) for path in self.paths(job.id)}

    def read(self, texts: Mapping[str, str]) -> Unit:
        """Parse the property list."""
        return read_launchd("".join(texts.values()))

    def paths(self, identity: str) -> list[Path]:
        """One file in the user's LaunchAgents."""
        return [self._home / "Library" / "LaunchAgents" / f"{launchd_label(identity)}.plist"]

    def is_active(self, identity: str) -> bool:
        """Whether launchd has loaded the agent."""
        return self._refusal("print", self._target(identity)) is None

    def enable(self, identity: str) -> None:
        """Load the agent in place of an earlier one."""
        if self.is_active(identity):
            self.disable(identity)
        self._refusal("enable", self._target(identity))  # or one that the user once disabled is not taken
        path = str(self.paths(identity)[0])
        for _ in range(5):
            said = self._refusal("bootstrap", self._domain, path)
            if said is None:
                return
            time.sleep(self._pause)
        raise ScheduleError(f"launchd did not take {path}; what lies there is as it was before: {said}")

    def disable(self, identity: str) -> None:
        """Unload the agent."""
        said = self._refusal("bootout", self._target(identity))
        if said is not None and self.is_active(identity):
            raise ScheduleError(f"launchd did not let go of the agent: {said}")

    def _target(self, identity: str) -> str:
        return f"{self._domain}/{launchd_label(identity)}"

    def _refusal(self, *arguments: str) -> str | None:
        return refusal(self.call("launchctl", *arguments))


def launchd_label(identity: str) -> str:
    """The name of the agent."""
    return f"draftloop.{identity}"


def launchd_plist(job: ScheduledJob) -> str:
    """The agent's property list, as XML."""
    when = job.when
    clock = {"Hour": when.hour, "Minute": when.minute} if isinstance(when, Daily) else None
    agent: dict[str, Any] = {
        "Label": launchd_label(job.id),
        "ProgramArguments": list(job.command),
        "WorkingDirectory": str(job.directory),
        "EnvironmentVariables": dict(job.environment),
        **({"StartCalendarInterval": clock} if clock else {"StartInterval": when.minutes * 60}),
        "ProcessType": "Background",
        "LowPriorityIO": True,
        "Nice": job.niceness,
        "Umask": 0o077,  # launchd makes the log where it is missing
        "ExitTimeOut": STOP_SECONDS,
        "StandardOutPath": str(job.log),
        "StandardErrorPath": str(job.log),
    }
    return plistlib.dumps(agent, sort_keys=False).decode()


def read_launchd(plist: str) -> Unit:
    """Parse a property list, as `launchd_plist` writes it."""
    when: Every | Daily | None = None
    try:
        agent = plistlib.loads(plist.encode())
        match agent:
            case {"StartCalendarInterval": {"Hour": int(hour), "Minute": int(minute), **others}} if not others:
                when = when_of(str(minute), str(hour))
            case {"StartInterval": int(seconds)} if seconds > 0 and seconds % 60 == 0:
                when = Every(seconds // 60)
        command = shlex.join(agent["ProgramArguments"])
    except (plistlib.InvalidFileException, ExpatError, ValueError, TypeError, LookupError):
        return Unit(None, {RHYTHM: "unreadable", "command": "unreadable"})
    clock = agent.get("StartCalendarInterval", agent.get("StartInterval"))
    parts = {name: str(agent[key]) for key, name in _PARTS.items() if key in agent}
    variables = {name: str(value) for name, value in agent.get("EnvironmentVariables", {}).items()}
    return Unit(when, {RHYTHM: str(clock if when is None else when), "command": command, **parts, **variables})
