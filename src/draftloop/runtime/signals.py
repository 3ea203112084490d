"""Answers Ctrl-C and SIGTERM at once, and sets a flag that a loop reads between two pieces of work.

The first signal asks to stop, the second one ends the process: what was acknowledged survives that as it survives a
kill. A thread of its own prints the answer, because the main one may be deep in MLX, where no handler runs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

GRACE_S = 1.0  # from the second signal on, to leave by the usual way
TURN_S = 0.1  # a process that ends within it says so itself, and a second line would repeat that
EXIT_CODE = 130
AGAIN = "Ctrl-C again stops at once"

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_answers = [f"stopping; {AGAIN}"]  # the last one is that of the innermost block


class StopRequest:
    """Becomes true at the first signal; a second one interrupts at once."""

    def __init__(self) -> None:
        self.requested = False

    def __bool__(self) -> bool:
        return self.requested

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def stop_request(answer: str = "stopping") -> Iterator[StopRequest]:
    """Listen for SIGINT and SIGTERM; outside the main thread, where signals never arrive, the flag stays false.

    Args:
        answer: is printed at the first signal, in a few words.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    with handling(stop._handle, f"{answer}; {AGAIN}"):
        yield stop


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None], answer: str) -> Iterator[None]:
    """Give SIGINT and SIGTERM to `handler`, and back to whoever had them before. In the main thread alone.

    Args:
        handler: is called for each signal.
        answer: is printed at the first signal.
    """
    _answers.append(answer)
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
        _answers.pop()


@contextmanager
def answering() -> Iterator[None]:
    """For a whole process: print a line at the first signal, whatever the main thread does; end it at the second.

    In the main thread alone. If no block listens, the first signal raises KeyboardInterrupt there. After the second one
    the main thread has GRACE_S to end; then the process exits with EXIT_CODE.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    over = threading.Event()
    thread = threading.Thread(target=_answer, args=(read, over), name="answers to Ctrl-C", daemon=True)
    thread.start()
    former = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(former)
        over.set()
        os.close(write)
        thread.join()
        os.close(read)


def leave_with(code: int) -> None:
    """From now on a signal ends the process with `code`: its work is done, and only Python still cleans up."""
    for number in _SIGNALS:
        signal.signal(number, lambda *_: os._exit(code))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    for number in _SIGNALS:  # the cleaning up is not interrupted again: the thread handles the second signal
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


def _answer(read: int, over: threading.Event) -> None:
    count = 0
    while received := os.read(read, 1):
        if received[0] not in _SIGNALS:
            continue
        count += 1
        answer = _answers[-1]  # of the block that may have ended by the time that this is printed
        if count == 1:
            if not over.wait(TURN_S):
                _say(answer)
        elif not over.wait(GRACE_S):
            _say("stopped at once; everything acknowledged is kept")
            os._exit(EXIT_CODE)


def _say(text: str) -> None:
    clear = "\r\x1b[K" if sys.stderr is not None and sys.stderr.isatty() else ""
    with suppress(OSError):  # nobody hears
        os.write(2, f"{clear}{text}\n".encode())
