"""A command whose stderr is a terminal of so many columns, and the lines that are seen there."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

from mortal import HANGS

_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def lines_on_a_terminal(arguments: list[str], directory: Path, columns: int = 80) -> tuple[int, list[str]]:
    """The exit code of a draftloop command and every line that its stderr drew, without colours; a bar's frames too."""
    return lines_of_a_program("from draftloop.cli import run_and_exit; run_and_exit()", arguments, directory, columns)


def lines_of_a_program(program: str, arguments: list[str], directory: Path, columns: int = 80) -> tuple[int, list[str]]:
    """The same of any Python program."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(
        command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        seen = b""
        with suppress(OSError):  # a terminal whose other end is closed is at its end by an error
            while piece := os.read(ours, 65536):
                seen += piece
        os.close(ours)
        code = process.wait(HANGS)
    text = _CONTROLS.sub("", seen.decode())
    return code, [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]
