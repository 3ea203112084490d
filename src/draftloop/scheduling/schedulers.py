"""Chooses the scheduler of this machine, and compares the unit that is installed there with a job."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ScheduleError
from ..store.files import FILES, storing
from .cron import Cron
from .job import ScheduledJob
from .launchd import Launchd
from .scheduler import RHYTHM, Scheduler, Unit
from .systemd import Systemd

_KINDS: Mapping[str, type[Scheduler]] = {kind.kind: kind for kind in (Cron, Launchd, Systemd)}
KINDS = tuple(_KINDS)


@dataclass(frozen=True)
class ScheduleState:
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
    return _KINDS[kind]()


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
        "install cron), or have whatever starts programs here run `draftloop schedule run`; `--kind systemd` shows "
        "what would be installed"
    )


def schedule_state(place: Scheduler, job: ScheduledJob) -> ScheduleState:
    """Compare the unit that `install` would write with the installed one."""
    installed, wanted = place.installed(job.id), place.render(job)
    if not installed:
        return ScheduleState(installed=False, current=False, stray=False)
    active, unit = place.is_active(job.id), place.read(installed)
    return ScheduleState(
        installed=active,
        current=active and installed == wanted,
        stray=not active,
        rhythm=unit.parts[RHYTHM],
        differs=differences(unit, place.read(wanted)),
    )


def differences(installed: Unit, wanted: Unit) -> dict[str, str | None]:
    """The parts in which two units differ, variables last, each as it is installed; None for one that is not."""
    names = sorted(dict.fromkeys((*wanted.parts, *installed.parts)), key=str.isupper)
    return {name: installed.parts.get(name) for name in names if installed.parts.get(name) != wanted.parts.get(name)}


def kinds_in_place(identity: str) -> list[str]:
    """The kinds that have something of the job `identity` now."""
    return [kind for kind in KINDS if scheduler(kind).installed(identity)]


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
    """Start draftloop as the scheduler will, with `--version`.

    Raises:
        ScheduleError: it did not answer.
    """
    command = [str(job.python), "-P", *job.entry, "--version"]
    environment = {"HOME": os.environ.get("HOME", "/"), **job.environment}
    done = subprocess.run(
        command, cwd=job.directory, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["without a message"])[-1]
        raise ScheduleError(
            f"`{' '.join(command)}` ended with {done.returncode} when it was tried with the variables that a scheduled "
            f"run has ({', '.join(job.environment) or 'none'}): {said}. Nothing was installed."
        )
