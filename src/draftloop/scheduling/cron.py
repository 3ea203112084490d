"""cron: each data directory has one marked block in the user's crontab; the rest is kept byte for byte."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..errors import ConfigError, ScheduleError
from .job import ScheduledJob
from .scheduler import RHYTHM, Scheduler, Unit, clock_fields, refusal, when_of

PLACE = "crontab"
MAX_COMMAND_BYTES = 998  # what Vixie's cron takes, which Debian and macOS have
_NONE_YET = re.compile(rb"^(crontab: )?(no crontab for |can't open '[^'/]+': No such file)", re.MULTILINE)


class Cron(Scheduler):
    """cron, by way of the program `crontab`, which alone may change that file and checks what it is given."""

    kind = "cron"
    tool_missing = "install cron (Debian, Ubuntu: apt install cron), or choose --kind systemd or --kind launchd"

    def render(self, job: ScheduledJob) -> dict[str, str]:
        """The block, under the name PLACE."""
        return {PLACE: cron_block(job)}

    def installed(self, identity: str) -> dict[str, str]:
        """The block that is in the crontab now. Raises ScheduleError: also for a mark without its match."""
        if shutil.which("crontab") is None:
            return {}
        block = block_in(self._read(), identity)
        return {PLACE: block.decode(errors="surrogateescape")} if block else {}

    def read(self, texts: Mapping[str, str]) -> Unit:
        """Parse a block."""
        return read_cron(texts[PLACE].encode(errors="surrogateescape").decode(errors="replace"))

    def is_active(self, identity: str) -> bool:
        """Always for a block in the crontab."""
        return bool(self.installed(identity))

    def install(self, job: ScheduledJob) -> None:
        """Put the block where it was, or at the end, and see that it is there."""
        block = cron_block(job).encode()
        self._write(with_block(self._read(), job.id, block))
        if block_in(self._read(), job.id) != block:
            raise ScheduleError("`crontab` took the new line but does not show it; look with `crontab -l`")

    def remove(self, identity: str) -> None:
        """Take the block out, and delete the crontab if nothing else is in it."""
        self._write(with_block(self._read(), identity, b""))

    def warnings(self) -> list[str]:
        """On Linux, that no daemon runs."""
        if sys.platform != "linux" or _daemon_runs():
            return []
        return ["no cron daemon is running here, and without it nothing starts: `service cron start`, or its like"]

    def _read(self) -> bytes:
        done = self.call("crontab", "-l")
        if _NONE_YET.search(done.stderr) and done.returncode:
            return b""
        if said := refusal(done):
            raise ScheduleError(f"the crontab cannot be read, so it is left as it is: {said}")
        return done.stdout

    def _write(self, text: bytes) -> None:
        if said := refusal(self.call("crontab", "-" if text else "-r", stdin=text)):
            raise ScheduleError(f"the crontab is as it was: {said}")


def cron_marks(identity: str) -> tuple[str, str]:
    """The first and the last line of the block of the job `identity`."""
    return f"# draftloop begin {identity}", f"# draftloop end {identity}"


def cron_block(job: ScheduledJob) -> str:
    """The crontab line between its two marks, with the newlines."""
    begin, end = cron_marks(job.id)
    return f"{begin}\n{cron_line(job)}\n{end}\n"


def cron_line(job: ScheduledJob) -> str:
    """The crontab line, without a newline: five fields, then a POSIX shell command.

    Raises:
        ConfigError: an interval that no crontab can say.
        ScheduleError: a line longer than cron takes.
    """
    clock = clock_fields(job.when)
    if clock is None:
        raise ConfigError(
            f"--every {job.when.minutes}: cron takes minutes that divide an hour (1, 5, 15, 30, 60 ...) or whole "
            "hours that divide a day (120, 180, 240, 360, 480, 720, 1440). Take one of them, or --kind systemd or "
            "launchd, which take any."
        )
    # 1. What /bin/sh is to do. The output goes to the log first, so that every later failure is found there.
    log, directory = shlex.quote(str(job.log)), shlex.quote(str(job.directory))
    variables = "".join(f" {name}={shlex.quote(value)}" for name, value in job.environment.items())
    export = f"export{variables}; " if variables else ""
    command = f"umask 077; exec >>{log} 2>&1; {export}cd {directory} && exec {shlex.join(job.command)}"
    # 2. What cron itself reads: % ends a command unless it is \%, and some crons make one \ of two. Every backslash
    # stands between single quotes here; closing and opening them after it keeps it from both.
    command = command.replace("\\", "\\''").replace("%", "\\%")
    if (size := len(command.encode())) > MAX_COMMAND_BYTES:
        longest = max(job.environment, key=lambda name: len(job.environment[name].encode()), default="")
        alone = len(job.environment.get(longest, "").encode())
        raise ScheduleError(
            f"the crontab line would have {size} bytes, and cron takes {MAX_COMMAND_BYTES}"
            + (f"; {longest} alone has {alone}" if longest else "")
            + ". Make that shorter, or the paths of the directories, or take --kind systemd."
        )
    return f"{clock[0]} {clock[1]} * * * {command}"


def read_cron(block: str) -> Unit:
    """Parse the first line of a block that is no comment, as `cron_line` writes it."""
    line = next((line for line in block.split("\n") if line and not line.startswith("#")), "")
    *fields, command = line.split(" ", 5)
    minute, hour, *others = fields if len(fields) == 5 else ("", "")
    when = when_of(minute, hour) if others == ["*", "*", "*"] else None
    parts = {RHYTHM: " ".join(fields) if when is None else str(when)}
    command = command.replace("\\%", "%").replace("\\''", "\\")
    words: list[str] = []
    with suppress(ValueError):  # a quote without its match
        words = shlex.split(command)
    match words:
        case ["umask", "077;", "exec", log, "2>&1;", *rest] if "cd" in rest:
            at = rest.index("cd")  # no variable is it: each of them has an equals sign
        case _:
            return Unit(when, parts | {"command": command})
    variables = rest[1:at]  # after export
    variables[-1:] = [last.removesuffix(";") for last in variables[-1:]]
    parts |= {
        "command": shlex.join(rest[at + 4 :]),  # after the directory, && and exec
        "directory": " ".join(rest[at + 1 : at + 2]),
        "log": log.removeprefix(">>"),
    }
    return Unit(when, parts | dict(word.partition("=")[::2] for word in variables))


def with_block(text: bytes, identity: str, block: bytes) -> bytes:
    """`text` with `block` in the place of the marked one, or at the end; an empty block takes it out.

    Raises:
        ScheduleError: marks without their match, or twice: someone edited them, and guessing could delete a line.
    """
    place = _place(text, identity)
    if place is None:
        return text + (b"\n" if block and text and not text.endswith(b"\n") else b"") + block
    return text[: place.start] + block + text[place.stop :]


def block_in(text: bytes, identity: str) -> bytes:
    """The marked block of `text`, or nothing. Raises ScheduleError: as `with_block`."""
    place = _place(text, identity)
    return b"" if place is None else text[place]


def _place(text: bytes, identity: str) -> slice | None:
    """From where to where the block goes, its last newline included."""
    begin, end = cron_marks(identity)
    begins, ends = (list(re.finditer(rb"^%s(\n|\Z)" % mark.encode(), text, re.MULTILINE)) for mark in (begin, end))
    if not begins and not ends:
        return None
    if len(begins) == len(ends) == 1 and begins[0].end() <= ends[0].start():
        return slice(begins[0].start(), ends[0].end())
    raise ScheduleError(
        f"the crontab has {len(begins)} lines `{begin}` and {len(ends)} lines `{end}`; one of each was expected, in "
        "that order. Nothing was changed: take them out with `crontab -e`."
    )


def _daemon_runs() -> bool:
    for name in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # a process that has ended meanwhile
            if name.read_text(errors="replace").strip() in ("cron", "crond"):
                return True
    return False
