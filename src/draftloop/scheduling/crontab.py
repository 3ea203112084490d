"""The user's crontab, in which one marked block a data directory is ours and all else is kept byte for byte."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from ..errors import ScheduleError
from .job import ScheduledJob
from .readback import Unit, read_cron
from .tool import call_tool, what_it_said
from .units import cron_block, cron_marks

PLACE = "crontab"
_REMEDY = "install cron (Debian, Ubuntu: apt install cron), or choose --kind systemd or --kind launchd"
_NONE_YET = re.compile(rb"^(crontab: )?(no crontab for |can't open '[^'/]+': No such file)", re.MULTILINE)


class Crontab:
    """cron, by way of the program `crontab`, which alone may change that file and checks what it is given."""

    kind: ClassVar[str] = "cron"

    def render(self, job: ScheduledJob) -> dict[str, str]:
        """The block, under the name PLACE."""
        return {PLACE: cron_block(job)}

    def found(self, identity: str) -> dict[str, str]:
        """The block that is in the crontab now, or nothing.

        Raises:
            ScheduleError: a crontab that cannot be read, or marks without their match.
        """
        block = block_in(_read(), identity)
        return {PLACE: block.decode(errors="surrogateescape")} if block else {}

    def read(self, texts: Mapping[str, str]) -> Unit:
        """What a block says."""
        return read_cron(texts[PLACE].encode(errors="surrogateescape").decode(errors="replace"))

    def is_active(self, identity: str) -> bool:
        """Whether cron will start it: what is in a crontab is."""
        return bool(self.found(identity))

    def install(self, job: ScheduledJob) -> None:
        """Put the block where it was, or at the end, and see that it is there.

        Raises:
            ScheduleError: no `crontab`, one that cannot be read, or one that refuses; it is then as it was.
        """
        block = cron_block(job).encode()
        _write(with_block(_read(), job.id, block))
        if block_in(_read(), job.id) != block:
            raise ScheduleError("`crontab` took the new line but does not show it; look with `crontab -l`")

    def remove(self, identity: str) -> None:
        """Take the block out, and the crontab away where nothing else was in it.

        Raises:
            ScheduleError: as `install`.
        """
        _write(with_block(_read(), identity, b""))

    def warnings(self, _job: ScheduledJob) -> list[str]:
        """What may keep it from running."""
        if sys.platform != "linux" or _daemon_runs():
            return []
        return ["no cron daemon is running here, and without it nothing starts: `service cron start`, or its like"]


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
    """The marked block of `text`, or nothing.

    Raises:
        ScheduleError: as `with_block`.
    """
    place = _place(text, identity)
    return b"" if place is None else text[place]


def _place(text: bytes, identity: str) -> slice | None:
    """From where to where the block goes, its last newline included."""
    begins, ends = (
        list(re.finditer(rb"^%s(\n|\Z)" % mark.encode(), text, re.MULTILINE)) for mark in cron_marks(identity)
    )
    if not begins and not ends:
        return None
    if len(begins) == len(ends) == 1 and begins[0].end() <= ends[0].start():
        return slice(begins[0].start(), ends[0].end())
    begin, end = cron_marks(identity)
    raise ScheduleError(
        f"the crontab has {len(begins)} lines `{begin}` and {len(ends)} lines `{end}`; one of each was expected, in "
        "that order. Nothing was changed: take them out with `crontab -e`."
    )


def _read() -> bytes:
    done = call_tool(["crontab", "-l"], _REMEDY)
    if done.returncode == 0:
        return done.stdout
    if _NONE_YET.search(done.stderr):
        return b""
    raise ScheduleError(f"the crontab cannot be read, so it is left as it is: {what_it_said(done)}")


def _write(text: bytes) -> None:
    done = call_tool(["crontab", "-"], _REMEDY, text) if text else call_tool(["crontab", "-r"], _REMEDY)
    if done.returncode != 0:
        raise ScheduleError(f"the crontab is as it was: {what_it_said(done)}")


def _daemon_runs() -> bool:
    for name in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # a process that has ended meanwhile
            if name.read_text(errors="replace").strip() in ("cron", "crond"):
                return True
    return False
