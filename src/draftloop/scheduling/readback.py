"""What a unit in place says: its rhythm and its other parts, from the text that a scheduler has. Pure.

Knows what units.py writes, and of a unit that someone edited only what is still as it writes it.
"""

from __future__ import annotations

import plistlib
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from xml.parsers.expat import ExpatError

from .job import Daily, Every
from .units import when_of

RHYTHM = "rhythm"
_PLIST_PARTS = {"WorkingDirectory": "directory", "StandardOutPath": "log", "Nice": "niceness"}
_SERVICE_PARTS = {"WorkingDirectory": "directory", "Nice": "niceness"}
_CALENDAR = re.compile(r"OnCalendar=\*-\*-\* (\S+):(\S+):00")
_INTERVAL = re.compile(r"OnBootSec=([1-9]\d*)min OnUnitActiveSec=\1min")


@dataclass(frozen=True)
class Unit:
    """A unit, read.

    Attributes:
        when: its rhythm, or None where it is none that units.py writes.
        parts: RHYTHM, command, directory, log, niceness and the variables by their names, each to its value in words;
            those that this kind of unit has.
    """

    when: Every | Daily | None
    parts: Mapping[str, str]


def differences(found: Unit, wanted: Unit) -> dict[str, str | None]:
    """The parts in which they differ, variables last, to what `found` has there: None where it has nothing."""
    names = sorted(dict.fromkeys((*wanted.parts, *found.parts)), key=str.isupper)
    return {name: found.parts.get(name) for name in names if found.parts.get(name) != wanted.parts.get(name)}


def read_cron(block: str) -> Unit:
    """The first line of a crontab's block that is no comment."""
    line = next((line for line in block.split("\n") if line and not line.startswith("#")), "")
    *fields, command = line.split(" ", 5)
    minute, hour, *others = fields if len(fields) == 5 else ("", "")
    when = when_of(minute, hour) if others == ["*", "*", "*"] else None
    return Unit(when, {RHYTHM: _told(when, " ".join(fields)), **_shell_parts(_from_cron(command))})


def read_launchd(plist: str) -> Unit:
    """An agent's property list."""
    try:
        agent = plistlib.loads(plist.encode())
        when = _agent_when(agent)
        command = shlex.join(agent["ProgramArguments"])
    except (plistlib.InvalidFileException, ExpatError, ValueError, TypeError, LookupError):
        return Unit(None, {RHYTHM: "unreadable", "command": "unreadable"})
    parts = {name: str(agent[key]) for key, name in _PLIST_PARTS.items() if key in agent}
    clock = agent.get("StartCalendarInterval", agent.get("StartInterval"))
    return Unit(when, {RHYTHM: _told(when, str(clock)), "command": command, **parts, **_variables(agent)})


def read_systemd(text: str) -> Unit:
    """A service and its timer, one after the other."""
    lines = text.split("\n")
    starts = " ".join(line for line in lines if line.startswith("On"))
    when = _timer_when(starts)
    parts = {RHYTHM: _told(when, starts)}
    for key, _, value in (line.partition("=") for line in lines):
        if key == "ExecStart":
            parts["command"] = shlex.join(_systemd_words(value.replace("$$", "$")))
        elif key == "Environment":
            parts.update(_assigned(_systemd_words(value)))
        elif key in _SERVICE_PARTS:
            parts[_SERVICE_PARTS[key]] = value.replace("%%", "%")
    return Unit(when, parts)


def _told(when: Every | Daily | None, text: str) -> str:
    return text if when is None else str(when)


def _from_cron(command: str) -> str:
    """What `_for_cron` of units.py was given."""
    return command.replace("\\%", "%").replace("\\''", "\\")


def _shell_parts(command: str) -> dict[str, str]:
    try:
        words = shlex.split(command)
    except ValueError:  # a quote without its match
        words = []
    match words:
        case ["umask", "077;", "exec", log, "2>&1;", *rest] if "cd" in rest:
            at = rest.index("cd")  # no variable is it: each of them has an equals sign
        case _:
            return {"command": command}
    variables = rest[1:at]  # after export
    variables[-1:] = [last.removesuffix(";") for last in variables[-1:]]
    return {
        "command": shlex.join(rest[at + 4 :]),  # after the directory, && and exec
        "directory": " ".join(rest[at + 1 : at + 2]),
        "log": log.removeprefix(">>"),
        **_assigned(variables),
    }


def _assigned(words: Iterable[str]) -> dict[str, str]:
    """NAME=value, apart."""
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def _agent_when(agent: Mapping[str, Any]) -> Every | Daily | None:
    match agent:
        case {"StartCalendarInterval": {"Hour": int(hour), "Minute": int(minute), **others}} if not others:
            return when_of(str(minute), str(hour))
        case {"StartInterval": int(seconds)} if seconds > 0 and seconds % 60 == 0:
            return Every(seconds // 60)
    return None


def _variables(agent: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in agent.get("EnvironmentVariables", {}).items()}


def _timer_when(starts: str) -> Every | Daily | None:
    if interval := _INTERVAL.fullmatch(starts):
        return Every(int(interval[1]))
    if calendar := _CALENDAR.fullmatch(starts):
        hour, minute = (field.replace("0/", "*/") for field in calendar.groups())
        return when_of(minute, hour)
    return None


def _systemd_words(value: str) -> list[str]:
    """A line's words: in double quotes the escapes are the shell's."""
    try:
        return shlex.split(value.replace("%%", "%"))
    except ValueError:
        return [value]
