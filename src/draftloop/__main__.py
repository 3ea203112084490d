"""`draftloop ...` and `python -m draftloop ...`: answers Ctrl-C from the first instant, then runs the command line.

Loading the commands takes a second on a busy machine. An interrupt meanwhile ends the process: nothing has begun yet.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress


def _leave(_signal: int, _frame: object) -> None:
    with suppress(OSError):
        os.write(2, b"stopped: interrupted\n")
    os._exit(130)


def main() -> None:
    """Run the command line of this process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    from .cli import run_and_exit

    run_and_exit()


if __name__ == "__main__":
    main()
