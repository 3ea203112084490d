"""Which scheduler a machine has, and what it has of ours. Knows none of them from the inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..errors import ScheduleError
from ..store.files import FILES, storing
from .crontab import Crontab
from .job import ScheduledJob
from .readback import RHYTHM, Unit, differences
from .unit_files import Launchd, Systemd

KINDS = ("cron", "launchd", "systemd")


class Scheduler(Protocol):
    """What can put a job in place and take it away again."""

    @property
    def kind(self) -> str:
        """One of KINDS."""

    def render(self, job: ScheduledJob) -> dict[str, str]:
        """What would be put in place: where to text."""

    def found(self, identity: str) -> dict[str, str]:
        """What is in place now; nothing where there is nothing."""

    def read(self, texts: Mapping[str, str]) -> Unit:
        """What such texts say."""

    def is_active(self, identity: str) -> bool:
        """Whether the scheduler knows of what is in place."""

    def install(self, job: ScheduledJob) -> None:
        """Put it in place, instead of an earlier one."""

    def remove(self, identity: str) -> None:
        """Take it away."""

    def warnings(self, job: ScheduledJob) -> list[str]:
        """What may keep it from running, each with what to do."""


@dataclass(frozen=True)
class State:
    """How a job and what is in place compare.

    Attributes:
        installed: something is in place, and the scheduler will start it.
        current: it is exactly what installing now would put there.
        stray: files of ours lie there, but the scheduler knows nothing of them.
        rhythm: of what is in place, in words; None where nothing is.
        differs: the parts in which what is in place differs, to what they are there; None for one that is not there.
            Empty also where only details differ that no part holds.
    """

    installed: bool
    current: bool
    stray: bool
    rhythm: str | None = None
    differs: Mapping[str, str | None] = field(default_factory=dict)


def scheduler(kind: str) -> Scheduler:
    """The scheduler of one of KINDS, for the user and the environment of this process."""
    known: dict[str, Scheduler] = {"cron": Crontab(), "launchd": Launchd(), "systemd": Systemd()}
    return known[kind]


def usual_kind(
    platform: str = sys.platform, environment: Mapping[str, str] = os.environ, uid: int | None = None
) -> str:
    """launchd on macOS; on Linux systemd where a manager of the user runs; else cron where there is a `crontab`.

    Raises:
        ScheduleError: none of them is here.
    """
    if platform == "darwin":
        return "launchd"
    runtime = Path(environment.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid() if uid is None else uid}")
    if platform == "linux" and (runtime / "systemd").is_dir() and shutil.which("systemctl"):
        return "systemd"
    if shutil.which("crontab"):
        return "cron"
    systemd = "" if platform != "linux" else f", and no systemd runs for you (no `systemctl`, or no {runtime}/systemd)"
    raise ScheduleError(
        f"no scheduler was found here: there is no `crontab` on PATH{systemd}. Install cron (Debian, Ubuntu: apt "
        "install cron), or have whatever starts programs here run `draftloop schedule run`; --kind shows a unit"
    )


def schedule_state(place: Scheduler, job: ScheduledJob) -> State:
    """Compare what would be installed with what is."""
    found, wanted = _found(place, job.id), place.render(job)
    if not found:
        return State(installed=False, current=False, stray=False)
    active, unit = place.is_active(job.id), place.read(found)
    differs = differences(unit, place.read(wanted))
    return State(active, active and found == wanted, not active, unit.parts[RHYTHM], differs)


def unit_in_place(place: Scheduler, identity: str) -> Unit | None:
    """What is in place of the job `identity`, read; None where nothing is."""
    found = _found(place, identity)
    return place.read(found) if found else None


def kinds_in_place(identity: str) -> list[str]:
    """The kinds that have something of the job `identity` now."""
    return [kind for kind in KINDS if _found(scheduler(kind), identity)]


def install_job(place: Scheduler, job: ScheduledJob) -> None:
    """Put a job in place that is known to start, with a directory for its log.

    Raises:
        ScheduleError: it does not start with the few variables it will have, or the scheduler refuses it.
        StoreError: a file or directory that cannot be made.
    """
    check_start(job)
    with storing(job.log.parent):
        FILES.make_directory(job.log.parent)
    place.install(job)


def check_start(job: ScheduledJob) -> None:
    """Start draftloop as the scheduler will, only to ask for its version.

    Raises:
        ScheduleError: it did not answer.
    """
    command = [str(job.python), "-P", *job.entry, "--version"]
    environment = {"HOME": os.environ.get("HOME", "/"), **job.environment}
    done = subprocess.run(
        command, cwd=job.directory, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise ScheduleError(
            f"`{' '.join(command)}` ended with {done.returncode} when it was tried with the variables that a scheduled "
            f"run has ({', '.join(job.environment) or 'none'}): {said}. Nothing was installed."
        )


def _found(place: Scheduler, identity: str) -> dict[str, str]:
    if place.kind == "cron" and shutil.which("crontab") is None:
        return {}  # without the program there is no crontab; to install one is refused
    return place.found(identity)
