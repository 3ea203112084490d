"""Keeps a failed write to stdout or stderr from ending a command: it is remembered, and reported when that is done.

A training goes on when its reader goes away, when the disk behind a redirection is full, and when a stream was closed
from the start. `exit_code` gives the exit code for these cases.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from dataclasses import dataclass
from typing import Any, TextIO

import click


class Guarded(io.RawIOBase):
    """A file descriptor whose first failed write is kept in `lost` instead of being raised. -1 is a closed one."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.lost: OSError | None = None

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor. Raises OSError: it is closed."""
        if self._descriptor < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._descriptor >= 0 and os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """Write what the system takes; after a failure everything counts as written."""
        size = memoryview(data).nbytes
        while self.lost is None:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.lost = error
        return size


@dataclass
class _State:
    """Of this process: its guarded stdout, and whether the command does more than print."""

    out: Guarded | None = None
    did_something: bool = False


_state = _State()


class Doing(click.Command):
    """A command that changes something: its exit code says how that went, whether or not its report was printed."""

    def invoke(self, context: click.Context) -> object:
        """Run it; a dry run, and what only shows until --yes, does nothing but print."""
        options = context.params
        _state.did_something = not options.get("dry_run") and options.get("yes", True)
        return super().invoke(context)


def guard() -> None:
    """Replace this process's own streams by guarded ones; others, such as a test's, are left alone."""
    for number in range(3):  # or the next file that is opened gets the number, and what is printed with it
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    _state.did_something = False
    if sys.stdout is sys.__stdout__:
        _state.out = Guarded(1 if sys.stdout is not None else -1)
        sys.stdout = _text(_state.out, sys.stdout, "replace", line_buffering=_state.out.isatty())
    if sys.stderr is sys.__stderr__:
        raw = Guarded(2 if sys.stderr is not None else -1)
        sys.stderr = _text(raw, sys.stderr, "backslashreplace", line_buffering=True)


def is_lost() -> bool:
    """Whether a write failed: a command that prints for long may stop."""
    return _state.out is not None and _state.out.lost is not None


def exit_code(code: int) -> int:
    """The exit code of the process after a command that ended with `code`; says if not everything was printed.

    It is the code of what was done. Only a command that did nothing but print to a full disk or a closed stream has
    failed; one whose reader had seen enough has not.
    """
    sys.stdout.flush()
    if _state.out is None or _state.out.lost is None:
        return code
    error = _state.out.lost
    if error.errno == errno.EPIPE:
        click.echo("note: stdout was closed by its reader before everything was printed", err=True)
        return code
    done = "; what the command did is done" if _state.did_something else ""
    why = "stdout is closed" if error.errno == errno.EBADF else f"stdout: {error.strerror}"
    click.echo(f"note: not everything was printed, {why}{done}", err=True)
    return code if _state.did_something else code or 1


def _text(raw: Guarded, before: TextIO | None, errors: str, *, line_buffering: bool) -> TextIO:
    encoding = "utf-8"
    if before is not None:
        before.flush()
        encoding, errors = before.encoding, before.errors or errors
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=line_buffering)
