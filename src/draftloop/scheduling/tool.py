"""A scheduler's own command-line tool: called, waited for, heard. Knows none of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from ..errors import ScheduleError

PATIENCE_S = 60.0


def call_tool(
    arguments: Sequence[str], remedy: str, data: bytes | None = None, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a tool in plain English and wait; whether it went well is the caller's to judge.

    Args:
        arguments: the tool's name, looked up on PATH, and its arguments.
        remedy: what the user can do where there is no such tool.
        data: its stdin, empty by default.
        variables: of the environment, beside those of this process.

    Raises:
        ScheduleError: no such tool, or no end after PATIENCE_S.
    """
    environment = {**os.environ, "LC_ALL": "C", **variables}
    try:
        return subprocess.run(
            arguments, input=data or b"", capture_output=True, timeout=PATIENCE_S, env=environment, check=False
        )
    except (FileNotFoundError, PermissionError):
        raise ScheduleError(f"no `{arguments[0]}` was found on PATH ({environment.get('PATH')}); {remedy}") from None
    except subprocess.TimeoutExpired:
        raise ScheduleError(f"`{' '.join(arguments)}` did not end within {PATIENCE_S:g} s; try it by hand") from None


def what_it_said(done: subprocess.CompletedProcess[bytes]) -> str:
    """A failed call in one line: the command, its exit code and its message."""
    message = " ".join((done.stderr or done.stdout).decode(errors="replace").split()) or "without a word"
    return f"`{' '.join(done.args)}` ended with {done.returncode}: {message}"
