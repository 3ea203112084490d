"""Learning while nobody asks: `retrain` in a child process of the lowest priority, which the first request stops.

    no request for so long -> it begins, or goes on (SIGCONT)
    a request              -> SIGSTOP, or SIGKILL where memory is short: then it goes on from its checkpoint
    the server ends        -> SIGTERM: the child writes a checkpoint

A stopped child whose server is killed would keep the lock of trainings for ever. The kernel wakes such a one, but not
if it was just about to stop. So a shell waits beside it for the end of its own stdin, which the server alone holds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

TICK = 0.1  # seconds between two looks at what there is to do
LAST_WORDS = 20.0  # seconds in which a child writes its checkpoint when the server ends
AGAIN = 600.0  # seconds after a run that had nothing to do, or failed, where nothing was captured since

_GUARD = 'cat >/dev/null; kill -s CONT -- "-$1"; kill -s TERM -- "-$1"'  # for sh, with the child's process group

_DECIDED = {0, 11}  # exit codes of `retrain`: promoted or rolled back, and refused

State = Literal["none", "at work", "stopped"]


@dataclass(frozen=True)
class ChildCommand:
    """What the child runs: its arguments, and what its environment has beside the server's."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Seen:
    """What a learner asks of the server.

    Attributes:
        is_idle: whether no request is under way or waiting.
        captured: records so far.
        is_short: whether memory does not hold a stopped child beside the next request.
    """

    is_idle: Callable[[], bool]
    captured: Callable[[], int]
    is_short: Callable[[], bool]


class IdleTraining:
    """Runs `command` while the server is idle.

    Args:
        command: of the child; it ends by itself when there is nothing left to do.
        idle_seconds: without a request before it begins or goes on.
        seen: what the server is doing.
        say: told each line of the child's stderr, and when it begins and ends.
        on_state: told whenever the child begins, stops, goes on or ends.
        on_killed: called after a child was killed for its memory.
    """

    def __init__(
        self,
        command: ChildCommand,
        idle_seconds: float,
        seen: Seen,
        say: Callable[[str], None],
        on_state: Callable[[State], None] = lambda _state: None,
        on_killed: Callable[[], None] = lambda: None,
    ) -> None:
        self._command, self._idle_seconds, self._seen = command, idle_seconds, seen
        self._say, self._on_state, self._on_killed = say, on_state, on_killed
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._state: State = "none"
        self._last = time.monotonic()  # when a request was there
        self._ended = -AGAIN  # when the last child ended
        self._known = -1  # records that the last child could know
        self._is_cut_off = False  # by this object: it goes on from its checkpoint
        self._over = threading.Event()
        self._listener = threading.Thread()
        self._thread = threading.Thread(target=self._run, name="learner", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def touch(self) -> None:
        """A request is there. From any thread; takes no time."""
        killed = False
        with self._lock:
            if self._over.is_set():
                return  # it is ending, and writes its checkpoint
            self._last = time.monotonic()
            if self._state == "at work" and self._child is not None:
                if self._seen.is_short():
                    self._signal(signal.SIGKILL)
                    self._is_cut_off = True
                    self._enter("none")
                    killed = True
                else:
                    self._signal(signal.SIGSTOP)
                    self._enter("stopped")
        if killed:
            self._on_killed()

    def close(self) -> None:
        """End the child with a checkpoint, within LAST_WORDS."""
        with self._lock:
            self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        child = self._child
        if child is None:
            return
        if child.poll() is None:
            self._is_cut_off = True
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)
        try:
            child.wait(LAST_WORDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
        self._reap(time.monotonic())
        self._listener.join(1)  # somebody else may have its stderr

    # On the learner's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._over.wait(TICK):
            with self._lock:
                self._tick(time.monotonic())

    def _tick(self, now: float) -> None:
        if self._child is not None and self._child.poll() is not None:
            self._reap(now)
        if not self._seen.is_idle():
            self._last = now
            return
        if now - self._last < self._idle_seconds:
            return
        if self._state == "stopped":
            self._signal(signal.SIGCONT)
            self._enter("at work")
        elif self._child is None and self._is_due(now):
            self._begin()

    def _is_due(self, now: float) -> bool:
        return self._seen.captured() != self._known or now - self._ended >= AGAIN

    def _begin(self) -> None:
        self._known = self._seen.captured()
        try:
            self._child = subprocess.Popen(
                self._command.arguments,
                env={**os.environ, **self._command.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                process_group=0,
            )
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sh", str(self._child.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as error:  # no memory for another process, say; later there may be
            self._ended = time.monotonic()
            self._say(f"learning: no process can be started: {error}")
            if self._child is None:
                return
        self._listener = threading.Thread(target=self._listen, args=(self._child,), name="learner's child", daemon=True)
        self._listener.start()
        self._enter("at work")

    def _listen(self, child: subprocess.Popen[str]) -> None:
        assert child.stderr is not None
        with child.stderr as lines:
            for line in lines:
                if text := line.strip():
                    self._say(f"learning: {text}")

    def _reap(self, now: float) -> None:
        assert self._child is not None
        if self._guard is not None:
            self._dismiss(self._guard)  # first, for the child's number may be another process's soon
        code = self._child.wait()
        self._child, self._ended = None, now
        if self._is_cut_off or code in _DECIDED:  # there is a checkpoint; or there may be more to do
            self._known = -1
        elif code < 0:  # by the system, for want of memory, say: at once it would only happen again
            self._say(f"learning: the training was ended by signal {-code}")
        self._is_cut_off = False
        self._enter("none")

    def _dismiss(self, guard: subprocess.Popen[bytes]) -> None:
        guard.kill()
        guard.wait()
        assert guard.stdin is not None
        guard.stdin.close()
        self._guard = None

    def _enter(self, state: State) -> None:
        if state != self._state:
            self._state = state
            self._on_state(state)

    def _signal(self, number: int) -> None:
        assert self._child is not None
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)
