"""The `train` or `retrain` at work in a data directory, how far it is, and the trainings that wait to be resumed.

The lock says whether there is one; its own notes say the rest. Imports no mlx.
"""

from __future__ import annotations

import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..data_directory import DataDirectory
from ..errors import RunError
from ..training.run import RunDirectory


@dataclass(frozen=True)
class Running:
    """A process at work. Everything but `stopped` may be unknown: None.

    Attributes:
        process, command: its id, and `train` or `retrain`.
        seconds: since it began.
        doing: its step, in words; None for `train`.
        run, step, steps: of the training in work.
        seconds_left: of the training, at most, by how long its steps took.
        seconds_since_step: since the last one was made.
        stopped: by Ctrl-Z or SIGSTOP; False where that is unknown.
        how: it works, where a server started it.
    """

    process: int | None = None
    command: str | None = None
    seconds: float | None = None
    doing: str | None = None
    run: str | None = None
    step: int | None = None
    steps: int | None = None
    seconds_left: float | None = None
    seconds_since_step: float | None = None
    stopped: bool = False
    how: str | None = None

    def __str__(self) -> str:
        who = f"{self.command or 'a training'}, process {self.process or 'unknown'}"
        who += f", {self.how}" if self.how else ""
        since = "" if self.seconds is None else f", for {in_minutes(self.seconds)}"
        training = f"run {self.run}, step {self.step} of {self.steps}"
        said = f"{who}{since}: {training if self.run is not None else self.doing or 'at its beginning'}"
        if self.stopped and self.how:
            return f"waiting until nobody asks the server: {said}"
        if self.stopped:
            return f"stopped by Ctrl-Z or SIGSTOP: {said}; `kill -CONT {self.process}` lets it go on"
        if self.seconds_left is None:
            return said
        late = self.seconds_since_step is not None and self.seconds_since_step > max(300.0, self.seconds_left)
        quiet = f", the last step {in_minutes(self.seconds_since_step or 0.0)} ago" if late else ""
        return f"{said}, at most about {in_minutes(self.seconds_left)} left{quiet}"


def running(data: DataDirectory, now: float) -> Running | None:
    """The process that holds the lock of `data` now; None where none does. It is not disturbed.

    Args:
        data: the directory.
        now: unix seconds.
    """
    presence = data.presence.look()
    if presence is None:
        return None
    process, began = presence.get("process"), presence.get("since")
    known = Running(
        process=process,
        command=presence.get("command"),
        seconds=None if began is None else max(0.0, now - began),
        doing=presence.get("doing"),
        how=presence.get("how"),
        stopped=presence.get("host") == socket.gethostname() and is_stopped(int(process or 0)),
    )
    for run in reversed(RunDirectory.all(data.runs)):
        progress = run.progress()
        if progress is not None and progress.get("process") == process and not run.is_finished():
            when = progress.get("when")
            return replace(
                known,
                run=run.id,
                step=progress.get("step"),
                steps=progress.get("steps"),
                seconds_left=progress.get("seconds_left"),
                seconds_since_step=None if when is None else max(0.0, now - when),
            )
    return known


@dataclass(frozen=True)
class Unfinished:
    """A training that can be resumed and is not at work: its run, the step of its checkpoint, and its command."""

    run: str
    step: int
    purpose: str


def unfinished(data: DataDirectory, at_work: Running | None) -> list[Unfinished]:
    """The trainings that were stopped or cut off, oldest first; not the one at work."""
    resumable = []
    for run in RunDirectory.all(data.runs):
        if run.is_finished() or not run.checkpoints.exist() or (at_work is not None and at_work.run == run.id):
            continue
        with suppress(RunError):  # nobody can go on with it
            resumable.append(Unfinished(run.id, run.checkpoints.step(), str(run.description().get("purpose"))))
    return resumable


def is_stopped(process: int) -> bool:
    """Whether a process of this machine is stopped (state T); False where that is unknown."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # no Linux, or gone
        command = ["ps", "-o", "state=", "-p", str(process)]
        try:
            state = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return False
    return state[:1] in ("T", "t")


def in_minutes(seconds: float) -> str:
    """A duration as a person says it."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 120:
        return f"{minutes} minute{'s' if minutes > 1 else ''}"
    return f"{minutes / 60:.1f} hours"
