"""The directory of one training, `<data>/runs/rNNNN/`: what reproduces it and what it wrote. Knows no model.

    run.yaml           resolved configuration, versions, seed, data hashes, git commit, time limits
    material.json      ids of the records, so that a resumed run trains on the same ones whatever was logged since
    start.json         the draft's acceptance by kind of token before the first step
    texts-N.json       the new samples of stage N
    metrics.jsonl, train.log, checkpoints/, and progress.json while it trains
    result.json        at the end: where it is, the run is finished

A run that its time limit ended keeps what it takes to go on until the next run is made: it may be given more time.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson
import yaml
from pydantic import TypeAdapter

from ..config import Config
from ..errors import ConfigError, RunError
from ..store.atomic import write_atomically
from ..store.files import FILES, Files, check_readable, storing
from ..store.presence import Note
from ..store.yaml_strict import read_yaml
from .checkpoints import Checkpoints
from .dataset.examples import Example, from_json
from .time_limit import TimeLimit

DESCRIPTION = "run.yaml"
MIXTURE = "material.json"
START = "start.json"
SAMPLES = "texts-{}.json"
RESULT = "result.json"
RESUMPTIONS = "resumptions.json"
PROGRESS = "progress.json"
LATEST = "latest"
PARTS = ("failures", "replay_pool", "validation")  # of the mixture: the ids of its records
TIME_LIMIT = "time limit"  # why a run ended that may be given more time
_NAME = re.compile(r"r[0-9]{4,}")
_PACKAGES = ("draftloop", "mlx", "mlx-lm", "numpy")


class RunDirectory:
    """One run's files. Making the object touches nothing; `create` and `find` give one that exists."""

    def __init__(self, path: Path, files: Files = FILES) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints", files)
        self._files = files

    @classmethod
    def create(cls, runs: Path, files: Files = FILES) -> RunDirectory:
        """A new empty run under `runs`, numbered after the last one; finished ones are cleared of what a kill left.

        Raises StoreError: the disk refused.
        """
        with storing(runs):
            files.make_directory(runs)
            earlier = cls.all(runs, files)
            for run in earlier:
                if run.is_finished():
                    run.clear()
            number = max((_number(run.path) for run in earlier), default=0)
            while True:
                number += 1
                path = runs / f"r{number:04d}"
                with suppress(FileExistsError):
                    files.make_directory(path, new=True)
                    return cls(path, files)

    @classmethod
    def find(cls, runs: Path, reference: str, files: Files = FILES, *, more_time: bool = False) -> RunDirectory:
        """The run to go on with.

        Args:
            runs: the directory of all runs.
            reference: its id, or `latest` for the newest one that can be resumed.
            files: the seam for the operations that change something.
            more_time: it is given more, so that a run which its time limit ended can be resumed too.

        Raises:
            RunError: there is no such run, it is finished, or it left no checkpoint.
        """
        everything = cls.all(runs, files)
        open_ones = [run.id for run in everything if run._why_closed(more_time) is None and run.checkpoints.exist()]
        names = ", ".join(open_ones) or "none"
        wanted = open_ones[-1] if reference == LATEST and open_ones else reference
        run = next((run for run in everything if run.id == wanted), None)
        if run is None:
            raise RunError(f"no run {reference!r} to resume in {runs}; unfinished ones: {names}")
        closed = run._why_closed(more_time)
        if closed is not None:
            raise RunError(f"run {run.id} is finished{closed}; unfinished ones: {names}")
        if not run.checkpoints.exist():
            gone = "'s checkpoint went when the next run began" if run.is_finished() else " left no checkpoint"
            raise RunError(f"run {run.id}{gone}, so there is nothing to go on from; start a new training")
        return run

    def _why_closed(self, more_time: bool) -> str | None:
        """What to add to "is finished" of a run that cannot be resumed; None of one that can."""
        if not self.is_finished() or (self.ended() == TIME_LIMIT and more_time):
            return None
        if self.ended() != TIME_LIMIT or not self.checkpoints.exist():
            return ""
        return f": its time limit ended it, and `train --resume {self.id} --max-minutes M` gives it M more minutes"

    @classmethod
    def all(cls, runs: Path, files: Files = FILES) -> list[RunDirectory]:
        """Every run under `runs`, oldest first."""
        paths = [path for path in runs.glob("r*") if _NAME.fullmatch(path.name)]
        # A symbolic link among them is no run, for a run is written to.
        directories = [path for path in paths if path.is_dir() and not path.is_symlink()]
        return [cls(path, files) for path in sorted(directories, key=_number)]

    @classmethod
    def unfinished(cls, runs: Path, purpose: str, files: Files = FILES) -> list[RunDirectory]:
        """Runs that were started for `purpose` and gave no version, oldest first; unreadable ones are passed over."""
        unfinished = []
        for run in cls.all(runs, files):
            with suppress(RunError):
                if not run.is_finished() and run.description().get("purpose") == purpose:
                    unfinished.append(run)
        return unfinished

    @property
    def id(self) -> str:
        """The run's name."""
        return self.path.name

    def is_finished(self) -> bool:
        """Whether it gave a version, or was given up."""
        return (self.path / RESULT).is_file()

    def ended(self) -> str | None:
        """Why the run ended, as its result says; None where there is none, or it cannot be read."""
        try:
            ended = orjson.loads((self.path / RESULT).read_bytes()).get("ended")
        except (OSError, orjson.JSONDecodeError, AttributeError):
            return None
        return None if ended is None else str(ended)

    def cost(self) -> tuple[int, float] | None:
        """Failures trained on, and seconds of work; None where it gave no version, or cannot be read."""
        try:
            result = orjson.loads((self.path / RESULT).read_bytes())
            return int(result["failures"]), float(result["seconds"])
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return None

    def describe(self, description: dict[str, Any], mixture: dict[str, Any]) -> None:
        """Write `run.yaml` and `material.json`. Raises StoreError: the disk refused."""
        self._write_description(description)
        self._write(MIXTURE, orjson.dumps(mixture))

    def _write_description(self, description: dict[str, Any]) -> None:
        self._write(DESCRIPTION, yaml.safe_dump(description, sort_keys=False, allow_unicode=True).encode())

    def note_start(self, accepted: Mapping[str, float]) -> None:
        """Keep the draft's acceptance at the start, summed by kind of token: later its weights are gone.

        Raises StoreError: the disk refused.
        """
        self._write(START, orjson.dumps(accepted))

    def start(self) -> dict[str, float] | None:
        """What `note_start` kept; None where it did not, or cannot be read."""
        try:
            return {str(kind): float(value) for kind, value in orjson.loads((self.path / START).read_bytes()).items()}
        except (OSError, orjson.JSONDecodeError, AttributeError, TypeError, ValueError):
            return None

    def keep_samples(self, stage: int, samples: Sequence[Example]) -> None:
        """Keep the new samples of a stage. Raises StoreError: the disk refused."""
        self._write(SAMPLES.format(stage), orjson.dumps(samples))

    def samples(self, stage: int) -> list[Example] | None:
        """What `keep_samples` kept; None where it did not. Raises RunError: damaged."""
        name = SAMPLES.format(stage)
        return from_json(self._read(name)) if (self.path / name).exists() else None

    def note_progress(self, step: int, steps: int, seconds_left: float | None) -> None:
        """Note for `status` how far this process is: `step` of `steps`, and how long the rest may take at most."""
        note = {"process": os.getpid(), "step": step, "steps": steps, "seconds_left": seconds_left, "when": time.time()}
        Note(self.path / PROGRESS).write(note)

    def progress(self) -> dict[str, Any] | None:
        """What `note_progress` noted last; None where it noted nothing, or cannot be read."""
        return Note(self.path / PROGRESS).read()

    def give_up(self, why: str) -> None:
        """Mark a run that will not be resumed; its checkpoints are removed. Raises StoreError: the disk refused."""
        self.finish({"given_up": why})

    def note_resumption(self) -> int:
        """Count that the run is resumed, before it is.

        Returns:
            How often it was resumed from the step of its checkpoint, this time included: above a few, whatever ends it
            comes again and again.

        Raises:
            RunError: the checkpoint is missing or damaged.
            StoreError: the disk refused.
        """
        step = self.checkpoints.step()
        check_readable(self.path / RESUMPTIONS)
        try:
            before = orjson.loads((self.path / RESUMPTIONS).read_bytes())
            times = int(before["times"]) if before["step"] == step else 0
        except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            times = 0
        self._write(RESUMPTIONS, orjson.dumps({"step": step, "times": times + 1}))
        return times + 1

    def forget_resumptions(self) -> None:
        """Count anew: a run that was stopped on purpose, or by a full disk, ended for a reason that goes away."""
        self._remove(self.path / RESUMPTIONS)

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result; the run is finished, and its checkpoints are removed if its time limit did not end it.

        Raises StoreError: the disk refused.
        """
        self._write(RESULT, orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
        if result.get("ended") == TIME_LIMIT:
            self._remove(self.path / PROGRESS)
        else:
            self.clear()

    def clear(self) -> None:
        """Remove what only a run at work, or one that is resumed, needs. Raises StoreError: the disk refused."""
        self.checkpoints.remove()
        for path in (self.path / PROGRESS, *self.path.glob(SAMPLES.format("*"))):
            self._remove(path)

    def limit(self) -> TimeLimit:
        """The time limit that counts, given last. Raises RunError: the description is missing or damaged."""
        try:
            given = self.description().get("limits")
            if given is None:  # it was begun by an earlier draftloop
                return TimeLimit.of(self.config().training.max_minutes)
            return TypeAdapter(TimeLimit).validate_python(given[-1]) if given else TimeLimit.of(None)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"run {self.id} cannot be resumed: limits in {self.path / DESCRIPTION}: {error}") from None

    def give_more_time(self, limit: TimeLimit) -> None:
        """From now on this limit counts, and the run is not finished. Raises StoreError: the disk refused."""
        description = self.description()
        limits = [*(description.get("limits") or []), asdict(limit)]
        self._write_description({**description, "limits": limits})
        self._remove(self.path / RESULT)

    def description(self) -> dict[str, Any]:
        """What `run.yaml` says. Raises RunError: missing or damaged."""
        check_readable(self.path / DESCRIPTION)
        try:
            return read_yaml(self.path / DESCRIPTION)
        except ConfigError as error:
            raise RunError(f"run {self.id} cannot be resumed: {error}") from None

    def config(self) -> Config:
        """The configuration that the run was started with. Raises RunError: missing or damaged."""
        try:
            return Config.model_validate(self.description()["config"])
        except (KeyError, ValueError) as error:
            raise RunError(f"run {self.id} cannot be resumed: {self.path / DESCRIPTION}: {error}") from None

    def mixture(self) -> dict[str, Any]:
        """What `material.json` says. Raises RunError: missing or damaged."""
        mixture: dict[str, Any] = self._read(MIXTURE)
        return mixture

    def may_go_on_with(self, record_ids: Collection[str]) -> bool:
        """Whether it holds what a resumed run goes on with, and that is, or may be, of some of these records."""
        if not self.checkpoints.exist() and next(self.path.glob(SAMPLES.format("*")), None) is None:
            return False
        try:
            mixture = self.mixture()
        except RunError:  # nobody knows, and it cannot go on
            return True
        return any(not set(mixture.get(part, ())).isdisjoint(record_ids) for part in PARTS)

    def _read(self, name: str) -> Any:
        check_readable(self.path / name)
        try:
            return orjson.loads((self.path / name).read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise RunError(f"run {self.id} cannot be resumed: {self.path / name}: {error}") from None

    def _remove(self, path: Path) -> None:
        with storing(path):
            self._files.remove(path)

    def _write(self, name: str, content: bytes) -> None:
        with storing(self.path / name):
            write_atomically(self.path / name, content, self._files)


def environment() -> dict[str, Any]:
    """What a run ran on: versions, platform, and the commit of this code where it is a git checkout, else null."""
    return {
        "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in _PACKAGES}},
        "platform": f"{platform.system()} {platform.machine()}",
        "git_commit": git_commit(Path(__file__).parent),
    }


def git_commit(directory: Path) -> str | None:
    """The commit checked out around `directory`; None where its files are not under git, or git is not there."""
    try:
        _git(directory, "ls-files", "--error-unmatch", "__init__.py")
        return _git(directory, "rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _number(path: Path) -> int:
    return int(path.name[1:])
