"""systemd: a service and its timer in the user's own manager, one such pair per data directory."""

from __future__ import annotations

import getpass
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from ..errors import ScheduleError
from .job import STOP_SECONDS, Daily, Every, ScheduledJob
from .scheduler import RHYTHM, Unit, UnitFiles, clock_fields, refusal, when_of

NOT_FAILURES = (10, 11, 12, 13, 130)  # nothing to do, refused, inconclusive, locked, stopped
_PARTS = {"WorkingDirectory": "directory", "Nice": "niceness"}
_CALENDAR = re.compile(r"OnCalendar=\*-\*-\* (\S+):(\S+):00")
_INTERVAL = re.compile(r"OnBootSec=([1-9]\d*)min OnUnitActiveSec=\1min")


class Systemd(UnitFiles):
    """systemd, by way of `systemctl --user`."""

    kind = "systemd"
    tool_missing = "it comes with systemd; where that is not used choose --kind cron, or on macOS --kind launchd"

    def render(self, job: ScheduledJob) -> dict[str, str]:
        """Service and timer."""
        return {str(self._folder / name): text for name, text in systemd_units(job).items()}

    def read(self, texts: Mapping[str, str]) -> Unit:
        """Parse service and timer."""
        return read_systemd("".join(texts.values()))

    def paths(self, identity: str) -> list[Path]:
        """Two files in the user's configuration."""
        return [self._folder / f"{systemd_name(identity)}.{ending}" for ending in ("service", "timer")]

    def is_active(self, identity: str) -> bool:
        """Whether the timer runs, and will after the next login."""
        timer = f"{systemd_name(identity)}.timer"
        return all(self._refusal(asked, "--quiet", timer) is None for asked in ("is-enabled", "is-active"))

    def enable(self, identity: str) -> None:
        """Enable the timer, and start it again: a new interval counts from now on."""
        timer = f"{systemd_name(identity)}.timer"
        for arguments in (["daemon-reload"], ["enable", timer], ["restart", timer]):
            if said := self._refusal(*arguments):
                raise ScheduleError(f"systemd did not take {timer}; its files are as they were before: {said}")

    def disable(self, identity: str) -> None:
        """Stop and disable the timer."""
        if said := self._refusal("disable", "--now", f"{systemd_name(identity)}.timer"):
            raise ScheduleError(f"systemd did not let go of the timer: {said}")

    def remove(self, identity: str) -> None:
        """As `Scheduler.remove`; then systemd reads its files again."""
        super().remove(identity)
        self._refusal("daemon-reload")

    def warnings(self) -> list[str]:
        """That a user's manager ends with the last session unless the user lingers."""
        if (Path("/var/lib/systemd/linger") / getpass.getuser()).exists():
            return []
        return ["it runs while you are logged in; `loginctl enable-linger` lets it run after that too"]

    @property
    def _folder(self) -> Path:
        configured = Path(self._environment.get("XDG_CONFIG_HOME") or self._home / ".config")
        return (configured if configured.is_absolute() else self._home / ".config") / "systemd" / "user"

    def _refusal(self, *arguments: str) -> str | None:
        runtime = self._environment.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"  # `su` leaves it out
        return refusal(self.call("systemctl", "--user", *arguments, XDG_RUNTIME_DIR=runtime))


def systemd_name(identity: str) -> str:
    """The name of service and timer, without the endings."""
    return f"draftloop-{identity}"


def systemd_units(job: ScheduledJob) -> dict[str, str]:
    """The user units: file name to text, the service first."""
    name = systemd_name(job.id)
    return {f"{name}.service": _service(job), f"{name}.timer": _timer(job)}


def read_systemd(text: str) -> Unit:
    """Parse a service and its timer, one after the other, as `systemd_units` writes them."""
    lines = text.split("\n")
    starts = " ".join(line for line in lines if line.startswith("On"))
    when: Every | Daily | None = None
    if interval := _INTERVAL.fullmatch(starts):
        when = Every(int(interval[1]))
    elif calendar := _CALENDAR.fullmatch(starts):
        hour, minute = (field.replace("0/", "*/") for field in calendar.groups())
        when = when_of(minute, hour)
    parts = {RHYTHM: starts if when is None else str(when)}
    for key, _, value in (line.partition("=") for line in lines):
        if key == "ExecStart":
            parts["command"] = shlex.join(_words(value.replace("$$", "$")))
        elif key == "Environment":
            parts.update(word.partition("=")[::2] for word in _words(value))
        elif key in _PARTS:
            parts[_PARTS[key]] = value.replace("%%", "%")
    return Unit(when, parts)


def _service(job: ScheduledJob) -> str:
    environment = "".join(f"Environment={_quoted(f'{name}={value}')}\n" for name, value in job.environment.items())
    # the path of a program, and that alone, may hold none of these, in whatever quotes
    shell = ("/bin/sh", "-c", 'exec "$0" "$@"') if set("\"'\\$") & set(str(job.python)) else ()
    command = " ".join(_quoted(word).replace("$", "$$") for word in (*shell, *job.command))
    # nothing is quoted in the rest of this line, and the slash saves a last space or backslash
    directory = str(job.directory).replace("%", "%%").rstrip("/") + "/"
    return (
        "[Unit]\n"
        f"Description=draftloop retrain for {_in_description(job.data_dir)}\n"
        "\n"
        "[Service]\n"
        "Type=oneshot\n"
        f"WorkingDirectory={directory}\n"
        f"{environment}"
        f"ExecStart={command}\n"
        f"SuccessExitStatus={' '.join(map(str, NOT_FAILURES))}\n"
        "KillMode=mixed\n"  # one SIGTERM, to the first process, which passes it on: a second one would cut training off
        f"TimeoutStopSec={STOP_SECONDS}\n"
        f"Nice={job.niceness}\n"
        "IOSchedulingClass=idle\n"
        "UMask=0077\n"
    )


def _timer(job: ScheduledJob) -> str:
    clock, said = clock_fields(job.when), job.when
    if clock is None:  # counted from the start of the one before, and not while the machine sleeps
        minutes = job.when.minutes
        start = f"OnBootSec={minutes}min\nOnUnitActiveSec={minutes}min\n"
    else:  # Persistent: what was missed while the machine was off is made up for, once
        said = when_of(*clock) or said  # one text for one rhythm
        minute, hour = (field.replace("*/", "0/") for field in clock)
        start = f"OnCalendar=*-*-* {hour}:{minute}:00\nPersistent=true\n"
    description = f"Description=draftloop retrain {said} for {_in_description(job.data_dir)}\n"
    return f"[Unit]\n{description}\n[Timer]\n{start}\n[Install]\nWantedBy=timers.target\n"


def _quoted(text: str) -> str:
    """One word of a unit: in double quotes, with the escapes of systemd.syntax(7) and %% for a specifier's %."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _words(value: str) -> list[str]:
    """The words of a line: in double quotes the escapes are the shell's."""
    try:
        return shlex.split(value.replace("%%", "%"))
    except ValueError:
        return [value]


def _in_description(path: Path) -> str:
    """A path for reading; the quotes keep a last backslash from going on with the next line."""
    return '"' + str(path).replace("%", "%%") + '"'
