"""A job as cron, launchd and systemd want it written. Pure: knows no file, no clock and no tool."""

from __future__ import annotations

import plistlib
import shlex
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ScheduleError
from .job import Daily, Every, ScheduledJob

CRON_BYTES = 998  # of a command: what Vixie's cron, which Debian and macOS have, takes
STOP_SECONDS = 300  # a training ends its step and writes a checkpoint when it is asked to stop
NOT_FAILURES = (10, 11, 12, 13, 130)  # nothing to do, refused, inconclusive, locked, stopped


def cron_line(job: ScheduledJob) -> str:
    """The crontab line, without a newline: five fields, then a POSIX shell command.

    Raises:
        ConfigError: an interval that no crontab can say.
        ScheduleError: a line longer than cron takes.
    """
    clock = clock_fields(job.when)
    if clock is None:
        raise ConfigError(
            f"--every {_minutes(job.when)}: cron takes minutes that divide an hour (1, 5, 15, 30, 60 ...) or whole "
            "hours that divide a day (120, 180, 240, 360, 480, 720, 1440). Take one of them, or --kind systemd or "
            "launchd, which take any."
        )
    command = _for_cron(_shell_command(job))
    if (size := len(command.encode())) > CRON_BYTES:
        longest = max(job.environment, key=lambda name: len(job.environment[name].encode()), default="")
        alone = len(job.environment.get(longest, "").encode())
        raise ScheduleError(
            f"the crontab line would have {size} bytes, and cron takes {CRON_BYTES}"
            + (f"; {longest} alone has {alone}" if longest else "")
            + ". Make that shorter, or the paths of the directories, or take --kind systemd."
        )
    return f"{clock[0]} {clock[1]} * * * {command}"


def cron_block(job: ScheduledJob) -> str:
    """The line between two marks that say whose it is, with the newlines: what is put into the crontab."""
    begin, end = cron_marks(job.id)
    return f"{begin}\n{cron_line(job)}\n{end}\n"


def cron_marks(identity: str) -> tuple[str, str]:
    """The first and the last line of the block of the job `identity`."""
    return f"# draftloop begin {identity}", f"# draftloop end {identity}"


def launchd_label(identity: str) -> str:
    """The name of the agent."""
    return f"draftloop.{identity}"


def launchd_plist(job: ScheduledJob) -> str:
    """The agent's property list, as XML."""
    agent: dict[str, Any] = {
        "Label": launchd_label(job.id),
        "ProgramArguments": list(job.command),
        "WorkingDirectory": str(job.directory),
        "EnvironmentVariables": dict(job.environment),
        **_launchd_start(job.when),
        "ProcessType": "Background",
        "LowPriorityIO": True,
        "Nice": job.niceness,
        "Umask": 0o077,  # launchd makes the log where it is missing
        "ExitTimeOut": STOP_SECONDS,
        "StandardOutPath": str(job.log),
        "StandardErrorPath": str(job.log),
    }
    return plistlib.dumps(agent, sort_keys=False).decode()


def systemd_name(identity: str) -> str:
    """The name of service and timer, without the endings."""
    return f"draftloop-{identity}"


def systemd_units(job: ScheduledJob) -> dict[str, str]:
    """The user units: file name to text, the service first."""
    name = systemd_name(job.id)
    return {f"{name}.service": _service(job), f"{name}.timer": _timer(job)}


def clock_fields(when: Every | Daily) -> tuple[str, str] | None:
    """Minute and hour in cron's notation (`*`, `0`, `*/15`), or None where the clock does not repeat so."""
    if isinstance(when, Daily):
        return str(when.minute), str(when.hour)
    hours, minutes = divmod(when.minutes, 60)
    if hours == 0 and 60 % minutes == 0:
        return _each(minutes, 1), "*"
    if hours and minutes == 0 and 24 % hours == 0:
        return "0", "0" if hours == 24 else _each(hours, 1)
    return None


def when_of(minute: str, hour: str) -> Every | Daily | None:
    """What `clock_fields` was given, or None where it does not write such fields; 24 hours at 0:00 are once a day."""
    known: list[Every | Daily] = [Every(number) for number in range(1, 24 * 60)]
    known += [Daily(number // 60, number % 60) for number in range(24 * 60)]
    return next((when for when in known if clock_fields(when) == (minute, hour)), None)


def _each(step: int, smallest: int) -> str:
    return "*" if step == smallest else f"*/{step}"


def _minutes(when: Every | Daily) -> int:
    return when.minutes if isinstance(when, Every) else 24 * 60


def _shell_command(job: ScheduledJob) -> str:
    """What /bin/sh is to do. The output goes to the log first, so that all that can go wrong after is found there."""
    log, directory = shlex.quote(str(job.log)), shlex.quote(str(job.directory))
    variables = "".join(f" {name}={shlex.quote(value)}" for name, value in job.environment.items())
    export = f"export{variables}; " if variables else ""
    return f"umask 077; exec >>{log} 2>&1; {export}cd {directory} && exec {shlex.join(job.command)}"


def _for_cron(command: str) -> str:
    r"""Escape what cron itself reads: % ends a command unless it is \%, and some crons make one \ of two.

    Every backslash stands between single quotes here; closing and opening them after it keeps it from both.
    """
    return command.replace("\\", "\\''").replace("%", "\\%")


def _launchd_start(when: Every | Daily) -> dict[str, Any]:
    if isinstance(when, Daily):
        return {"StartCalendarInterval": {"Hour": when.hour, "Minute": when.minute}}
    return {"StartInterval": when.minutes * 60}


def _service(job: ScheduledJob) -> str:
    environment = "".join(
        f"Environment={_systemd_quoted(f'{name}={value}')}\n" for name, value in job.environment.items()
    )
    # the path of a program, and that alone, may hold none of these, in whatever quotes
    shell = ("/bin/sh", "-c", 'exec "$0" "$@"') if set("\"'\\$") & set(str(job.python)) else ()
    command = " ".join(_systemd_quoted(word).replace("$", "$$") for word in (*shell, *job.command))
    return (
        "[Unit]\n"
        f"Description=draftloop retrain for {_in_description(job.data_dir)}\n"
        "\n"
        "[Service]\n"
        "Type=oneshot\n"
        f"WorkingDirectory={_systemd_directory(job.directory)}\n"
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
        minutes = _minutes(job.when)
        start = f"OnBootSec={minutes}min\nOnUnitActiveSec={minutes}min\n"
    else:  # Persistent: what was missed while the machine was off is made up for, once
        said = when_of(*clock) or said  # one text for one rhythm
        minute, hour = (field.replace("*/", "0/") for field in clock)
        start = f"OnCalendar=*-*-* {hour}:{minute}:00\nPersistent=true\n"
    description = f"Description=draftloop retrain {said} for {_in_description(job.data_dir)}\n"
    return f"[Unit]\n{description}\n[Timer]\n{start}\n[Install]\nWantedBy=timers.target\n"


def _systemd_quoted(text: str) -> str:
    """One word of a unit: in double quotes, with the escapes of systemd.syntax(7) and %% for a specifier's %."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _in_description(path: Path) -> str:
    """A path for reading; the quotes keep a last backslash from going on with the next line."""
    return '"' + str(path).replace("%", "%%") + '"'


def _systemd_directory(path: Path) -> str:
    """A path that is the rest of its line: nothing is quoted there, and the slash saves a last space or backslash."""
    return str(path).replace("%", "%%").rstrip("/") + "/"
