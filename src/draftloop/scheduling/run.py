"""`run_logged` runs a scheduled command as a child process, with its output in a log that does not grow for ever.

Knows nothing of the command. The child has a process of its own, so that the log has even a crash of the interpreter.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from ..runtime.signals import handling
from ..store.files import FILE_MODE, FILES, Files, storing
from ..store.lock import Lock

LIMIT_BYTES = 1_000_000
KEPT = 5


def run_logged(command: Sequence[str], log: Path, limit: int = LIMIT_BYTES, kept: int = KEPT) -> int:
    """Run `command` with its output appended to `log`, between a line that says when and a line that says how it ended.

    SIGTERM and SIGINT are passed on to it, once each, and it is waited for.

    Returns:
        Its exit code; 128 plus the number of the signal that killed it.

    Raises:
        StoreError: a log that cannot be written; the command was not started.
        OSError: a program that cannot be started.
    """
    descriptor = open_rotated(log, limit, kept)
    try:
        _say(descriptor, shlex.join(command))
        began = time.monotonic()
        receiver = _Receiver()
        with handling(receiver.handle, "asked the run to stop"):
            # a process group of its own: Ctrl-C at a terminal would reach it twice, and the second one cuts it off
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=subprocess.STDOUT, process_group=0
            )
            receiver.take(child)
            code = receiver.wait()
        ending = f"exit {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        _say(descriptor, f"{ending} after {time.monotonic() - began:.1f} s")
    finally:
        os.close(descriptor)
    return code if code >= 0 else 128 - code


def open_rotated(log: Path, limit: int = LIMIT_BYTES, kept: int = KEPT, files: Files = FILES) -> int:
    """Open `log` for appending; one of `limit` bytes or more becomes `log.1` first, and so on up to `log.<kept>`.

    A process that still writes goes on in the file that it opened, under its new name: no line is lost.

    Returns:
        A descriptor of a file of mode 0600; the caller closes it.

    Raises:
        StoreError: what the system refused.
    """
    with Lock(log.with_name(f".{log.name}.lock")), storing(log):
        if log.exists() and log.stat().st_size >= limit:
            there = [n for n in range(1, kept + 1) if _numbered(log, n).exists()]
            for old, new in shifts(there, kept):
                files.rename(_numbered(log, old), _numbered(log, new))
        descriptor = files.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.fchmod(descriptor, FILE_MODE)  # launchd may have made it, or a person
        return descriptor


def shifts(there: Collection[int], kept: int) -> list[tuple[int, int]]:
    """Which number becomes which, in the order to rename; 0 is the log itself, 1 the newest of the old ones.

    Only up to the first gap: a log is given up (overwritten, being number `kept`) where all numbers are taken.
    """
    free = next((n for n in range(1, kept) if n not in there), kept)
    return [(n, n + 1) for n in reversed(range(free))]


def _numbered(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}") if number else log


def _say(descriptor: int, what: str) -> None:
    line = f"=== {time.strftime('%Y-%m-%dT%H:%M:%S%z')} process {os.getpid()}: {what}\n"
    FILES.write_all(descriptor, line.encode(errors="surrogateescape"))


class _Receiver:
    """Takes signals for a child, also before there is one."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def take(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        for number in self._early:
            child.send_signal(number)

    def wait(self) -> int:
        assert self._child is not None
        return self._child.wait()

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if self._child is None:
            self._early.append(number)
        else:
            with suppress(ProcessLookupError):
                self._child.send_signal(number)
