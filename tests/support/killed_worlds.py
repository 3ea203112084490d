"""A log that processes work on which are killed at a given operation, each from the same beginning."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mortal import environment, python

_FAULTS = Path(__file__).parents[1] / "faults"
_AT_EACH_OPERATION = """
import importlib, json, os, shutil, sys
from pathlib import Path
from log_worlds import LogWorld
from mortal import BETWEEN, Board, MortalFiles

module, root, deaths = importlib.import_module(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
board = Board(root / "board")
module.begun(root / "begun")
for number, (at, share) in enumerate(deaths):
    board.text = BETWEEN
    place = root / str(number)
    shutil.copytree(root / "begun", place)
    child = os.fork()
    if not child:
        module.work(LogWorld(place, MortalFiles(board, at, share)))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(json.dumps({"struck": board.text, "killed": os.WIFSIGNALED(status)}), flush=True)
"""


def killed_at(module: str, root: Path, deaths: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
    """Let processes work on copies of one log, and die.

    Args:
        module: a test module with `begun(root)`, which makes the log, and `work(world)`.
        root: where `root/0`, `root/1`, … are left as each death left them.
        deaths: at which operation, and after which share of what it writes.

    Returns:
        Of each death what it struck, and whether it came to that.
    """
    return run_program(_AT_EACH_OPERATION, module, root, json.dumps(deaths))


def run_program(program: str, *arguments: object) -> list[dict[str, Any]]:
    """The lines of JSON that a program prints; it may import test modules of faults."""
    path = os.pathsep.join([str(_FAULTS), environment()["PYTHONPATH"]])
    command = python("-c", program, *arguments)
    done = subprocess.run(
        command, env={**environment(), "PYTHONPATH": path}, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
