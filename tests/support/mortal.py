"""Files whose process dies at an operation, and the board on which it says which one that was. No mlx."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from builders import CountingFiles

from draftloop.store.files import Files

BETWEEN = "between operations"
HANGS = 300.0
"""Seconds after which another process hangs, however slow and busy the machine is; below pytest's own timeout."""
_SIZE = 64


class Board:
    """A file in shared memory with one line of text, which outlives the process that wrote it."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_SIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)

    @property
    def text(self) -> str:
        """What was written last."""
        return self._memory[:].rstrip(b"\0").decode()

    @text.setter
    def text(self, text: str) -> None:
        self._memory[:] = text.encode().ljust(_SIZE, b"\0")


class MortalFiles(CountingFiles):
    """Files that kill their process at operation `die_at`, counted from 1, or at the so manieth called `only`.

    What writes dies with the share `written` of its bytes on disk, every other operation before it begins. The board
    always has the operation in work, as its name and the how manieth of that name it is, or BETWEEN. `die_at` 0 never
    comes.
    """

    def __init__(self, board: Board, die_at: int = 0, written: float = 0.0, only: str | None = None) -> None:
        super().__init__(self._begin, self._end)
        board.text = BETWEEN
        self._board = board
        self._die_at = die_at
        self._written = written
        self._only = only
        self._dying = False

    def sync(self, descriptor: int, full: bool = False) -> None:
        Files.sync(self, descriptor, full)  # for the time it takes: a kill may come in the middle of it

    def write(self, descriptor: int, data: bytes) -> int:
        if self._dying:
            super().write(descriptor, data[: int(len(data) * self._written)])
            die()
        return super().write(descriptor, data)

    def produce(self, path: Path, write: Callable[[str], None]) -> None:
        super().produce(path, write)
        if self._dying:
            os.truncate(path, int(path.stat().st_size * self._written))
            die()

    def _begin(self, number: int, name: str) -> None:
        self._board.text = f"{name} {self.names.count(name)}"
        if self._only is not None:
            number = self.names.count(self._only)
        self._dying = number == self._die_at and self._only in (None, name)
        if self._dying and name not in {"write", "produce"}:
            die()

    def _end(self, _number: int, _name: str) -> None:
        self._board.text = BETWEEN


def kind(struck: str) -> str:
    """The name of an operation on the board, without which one of that name it was."""
    return struck.rstrip(" 0123456789")


def die() -> None:
    """As by `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


def python(*arguments: object) -> list[str]:
    """The command line of another Python."""
    return [sys.executable, *map(str, arguments)]


def environment() -> dict[str, str]:
    """What another Python needs to import what this one does, set as for tests."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def has_ended(process: subprocess.Popen[str]) -> bool:
    """Whether a process has ended, after a moment's wait: what a loop with a deadline asks so as not to spin."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.02)
    return process.returncode is not None


def was_killed(process: subprocess.CompletedProcess[str]) -> bool:
    """Whether a process ended by SIGKILL; any other failure is an error of the test's own program."""
    if process.returncode not in (0, -signal.SIGKILL):
        raise AssertionError(process.stderr)
    return process.returncode == -signal.SIGKILL
