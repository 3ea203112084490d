"""`draftloop ...` and `python -m draftloop ...`: answers Ctrl-C from the first instant and hands over to the commands.

Loading them takes a second on a busy machine, and nothing has begun by then: an interrupt there ends the process.
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
