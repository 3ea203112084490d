"""A scheduled job: the command, when and where it runs, and with which variables. Knows no scheduler and no format."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..config import leaves, variable_of
from ..errors import ScheduleError
from ..runtime import blas

RETRAIN = ("retrain",)
RUN_LOGGED = ("schedule", "run")
SECRET = "HF_TOKEN"  # noqa: S105  a name, which is shown to the user; the value is never read
CARRIED = (  # what loading a model may need; nothing that could be a secret
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    blas.OFF,
)
PROGRAMS = ("git", "g++")  # what a run calls: for the commit in run.yaml, and MLX to compile for a CPU
SYSTEM_PATH = ("/usr/local/bin", "/usr/bin", "/bin")
STOP_SECONDS = 300  # a training ends its step and writes a checkpoint when it is asked to stop
_FIND = "import importlib.util as u; found = u.find_spec('draftloop'); print(found.origin if found else '')"
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Every:
    """Again and again.

    Attributes:
        minutes: between two starts, at least 1.
    """

    minutes: int

    def __str__(self) -> str:
        return "every minute" if self.minutes == 1 else f"every {self.minutes} minutes"


@dataclass(frozen=True)
class Daily:
    """Once a day, in local time.

    Attributes:
        hour: 0 to 23.
        minute: 0 to 59.
    """

    hour: int
    minute: int
    minutes: ClassVar[int] = 24 * 60  # between two starts

    def __str__(self) -> str:
        return f"daily at {self.hour:02}:{self.minute:02}"


@dataclass(frozen=True)
class ScheduledJob:
    """One data directory's retraining, complete, so that it needs no shell of the user. Every path is absolute.

    Attributes:
        python: the interpreter of the user's environment; a virtual environment's symlink, never what it points to.
        entry: the interpreter's arguments that start draftloop, as `entry_point` finds them.
        directory: the user's working directory, from which configs/config.yaml and relative paths are looked up.
        data_dir: what `--data-dir` named.
        config_file: what `--config` named, or None.
        when: how often.
        environment: variables to set, as `carried` picks them.
        niceness: 0 to 19, for the schedulers that can set it.
        arguments: the command of draftloop.

    Raises:
        ScheduleError: a control character or undecodable bytes in any of them; no unit could hold it.
    """

    python: Path
    entry: tuple[str, ...]
    directory: Path
    data_dir: Path
    config_file: Path | None
    when: Every | Daily
    environment: Mapping[str, str]
    niceness: int = 0
    arguments: tuple[str, ...] = RUN_LOGGED

    def __post_init__(self) -> None:
        for text in (*self.command, str(self.directory), *self.environment.values()):
            for character in text:
                if unicodedata.category(character) in ("Cc", "Cs") or ord(character) & 0xFFFE == 0xFFFE:
                    raise ScheduleError(
                        f"{text!r} holds {character!r}, which no scheduler's file can hold. Rename it, or change the "
                        "variable, to readable characters."
                    )

    @property
    def id(self) -> str:
        """Distinguishes it from the jobs of other data directories."""
        return identity_of(self.data_dir)

    @property
    def command(self) -> tuple[str, ...]:
        """The program and its arguments."""
        return draftloop_command(self.python, self.entry, self.data_dir, self.config_file, self.arguments)

    @property
    def log(self) -> Path:
        """Where the output goes."""
        return log_of(self.data_dir)


def identity_of(data_dir: Path) -> str:
    """Eight hexadecimal digits, the same for one data directory however it is reached."""
    return hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:8]


def log_of(data_dir: Path) -> Path:
    """The log of the scheduled runs of a data directory."""
    return data_dir / "runs" / "schedule.log"


def draftloop_command(
    python: Path, entry: tuple[str, ...], data_dir: Path, config_file: Path | None, arguments: tuple[str, ...]
) -> tuple[str, ...]:
    """`python` with this draftloop's `arguments`. -P: no json.py or token.py of the working directory is imported."""
    config = () if config_file is None else ("-c", str(config_file))
    return (str(python), "-P", *entry, "--data-dir", str(data_dir), *config, *arguments)


def entry_point(python: Path, package: Path = _PACKAGE) -> tuple[str, ...]:
    """How `python` starts the draftloop at `package` from any directory, and without a PYTHONPATH.

    Returns:
        `-m draftloop` where that very package is installed, else the path of `main.py` beside it in a checkout.

    Raises:
        ScheduleError: neither of the two; a scheduler could not start it.
    """
    # ask `python` itself which draftloop it would import: this process may have found another way
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-P", "-c", _FIND], cwd="/", env=bare, capture_output=True, text=True, check=False)
    if (origin := done.stdout.strip()) and Path(origin).resolve() == package / "__init__.py":
        return ("-m", "draftloop")
    main = package.parent / "main.py"
    if main.is_file():
        return (str(main),)
    raise ScheduleError(
        f"{python} finds the draftloop in {package} only by way of PYTHONPATH or the current directory, neither of "
        "which a scheduler has. Install it into that environment: pip install ."
    )


def interpreter() -> Path:
    """This interpreter, as it was called: resolving a virtual environment's symlink would lose its packages.

    Raises:
        ScheduleError: an embedded Python that does not know its own path.
    """
    if not sys.executable:
        raise ScheduleError("this Python does not know its own path; run draftloop with the python of an environment")
    return Path(sys.executable).absolute()


def carried(environment: Mapping[str, str], python: Path) -> dict[str, str]:
    """The variables of a scheduled run: a PATH, and those of CARRIED and of draftloop's settings that are set."""
    names = (*CARRIED, *map(variable_of, leaves()))
    variables = {name: environment[name] for name in names if environment.get(name)}
    return {"PATH": search_path(environment.get("PATH", ""), python), **variables}


def search_path(path: str, python: Path) -> str:
    """The few directories of `path` that a run needs: the same one whether or not an environment is activated.

    Returns:
        Those where PROGRAMS are found first, unless they come after anyway; that of `python`; SYSTEM_PATH. Relative
        ones are left out: relative to what, once a scheduler starts it?
    """
    usual = (str(python.parent), *SYSTEM_PATH)
    absolute = os.pathsep.join(name for name in path.split(os.pathsep) if name.startswith("/"))
    programs = [program for name in PROGRAMS if (program := shutil.which(name, path=absolute))]
    special = (folder for program in programs if (folder := str(Path(program).parent)) not in usual)
    return os.pathsep.join(dict.fromkeys((*special, *usual)))
