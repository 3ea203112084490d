"""Learning while nobody asks: `retrain` in a child process of the lowest priority, which the first request stops.

    no request for so long -> it begins, or goes on (SIGCONT)
    a request              -> SIGSTOP, or SIGKILL where memory is short: then it goes on from its checkpoint
    no idle time for long  -> a stopped child writes a checkpoint and ends (SIGTERM); another one looks at the champion,
                              which loads no target and is soon done, and is not stopped
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

from ..runtime.signals import AGAIN as AGAIN_BY_HAND
from .child_plan import ChildPlan

TICK = 0.1  # seconds between two looks at what there is to do
LAST_WORDS = 20.0  # seconds in which a child writes its checkpoint when the server ends
AGAIN = 600.0  # seconds after a run that had nothing to do, or failed, where nothing was captured since
WATCH_EVERY = 600.0  # seconds without idle time after which the champion is looked at all the same

_GUARD = 'cat >/dev/null; kill -s CONT -- "-$1"; kill -s TERM -- "-$1"'  # for sh, with the child's process group

_DECIDED = {0, 11}  # exit codes of `retrain`: promoted or rolled back, and refused

State = Literal["none", "at work", "stopped", "ending", "watching"]


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
        plan: how a child would work now; None where memory does not hold one.
    """

    is_idle: Callable[[], bool]
    captured: Callable[[], int]
    plan: Callable[[], ChildPlan | None]


@dataclass(frozen=True)
class Told:
    """Whom a learner tells what; by default nobody.

    Attributes:
        say: each line of the child's stderr, and what goes wrong.
        state: whenever the child begins, stops, goes on or ends.
        killed: after a child was killed for its memory, and has ended.
        answer: answers a line that the child asks.
    """

    say: Callable[[str], None] = lambda _line: None
    state: Callable[[State], None] = lambda _state: None
    killed: Callable[[], None] = lambda: None
    answer: Callable[[str], str] = lambda _line: ""


class IdleTraining:
    """Runs `command` while the server is idle.

    Args:
        command: of the child; it ends by itself when there is nothing left to do.
        idle_seconds: without a request before it begins or goes on.
        seen: what the server is doing.
        told: what the server does about it.
        watch_seconds: without idle time before the champion is looked at all the same.
    """

    def __init__(
        self,
        command: ChildCommand,
        idle_seconds: float,
        seen: Seen,
        told: Told | None = None,
        watch_seconds: float = WATCH_EVERY,
    ) -> None:
        self._command, self._idle_seconds, self._watch_seconds = command, idle_seconds, watch_seconds
        self._seen, self._told = seen, told or Told()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._plan: ChildPlan | None = None  # of the child
        self._state: State = "none"
        now = time.monotonic()
        self._last = now  # when a request was there
        self._ended = now - AGAIN  # when the last child ended
        self._known = -1  # records that the last child could know
        self._looked, self._looked_at = now, 0  # when a child last looked at the champion, and at how many records
        self._has_no_room = False
        self._is_cut_off = False  # by this object: it goes on from its checkpoint
        self._over = threading.Event()
        self._listeners: tuple[threading.Thread, ...] = ()
        self._thread = threading.Thread(target=self._run, name="learner", daemon=True)

    def start(self) -> None:
        """Begin to look. The time until now, in which the models were loaded, was not idle."""
        self._last = time.monotonic()
        self._thread.start()

    def touch(self) -> None:
        """A request is there. From any thread; takes no time."""
        with self._lock:
            if self._over.is_set():
                return  # it is ending, and writes its checkpoint
            self._last = time.monotonic()
            self._give_way()

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
            self._end_with_checkpoint()
        try:
            child.wait(LAST_WORDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
        self._reap(time.monotonic())
        for listener in self._listeners:
            listener.join(1)  # somebody else may have its stderr

    # On the learner's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._over.wait(TICK):
            with self._lock:
                self._tick(time.monotonic())

    def _tick(self, now: float) -> None:
        if self._child is not None and self._child.poll() is not None:
            self._reap(now)
        is_idle = self._seen.is_idle()
        if not is_idle:
            self._last = now
            self._give_way()  # it may have gone on between `touch` and the moment at which the server knew the request
        if is_idle and now - self._last >= self._idle_seconds:
            if self._state == "stopped":
                self._signal(signal.SIGCONT)
                self._enter("at work")
            elif self._child is None and self._is_due(now):
                self._begin(now)
        elif self._is_watch_due(now):
            if self._state == "stopped":
                self._end_with_checkpoint()
                self._enter("ending")
            elif self._child is None:
                self._begin(now, watches=True)

    def _is_due(self, now: float) -> bool:
        return self._seen.captured() != self._known or now - self._ended >= AGAIN

    def _is_watch_due(self, now: float) -> bool:
        return now - self._looked >= self._watch_seconds and self._seen.captured() != self._looked_at

    def _begin(self, now: float, *, watches: bool = False) -> None:
        captured = self._seen.captured()
        self._looked, self._looked_at = now, captured
        self._known = self._known if watches else captured
        self._plan = self._seen.plan()
        if self._plan is None:
            self._ended = now
            if not self._has_no_room:
                self._told.say("learning: there is not enough memory for a training beside the server")
            self._has_no_room = True
            return
        self._has_no_room = False
        if watches and self._plan.is_ended:
            return  # a request would have to wait for its end
        arguments = (*self._command.arguments, *(("--without-target", "--watch") if watches else self._plan.arguments))
        try:
            self._child = subprocess.Popen(
                arguments,
                env={**os.environ, **self._command.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
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
            self._ended = now
            self._told.say(f"learning: no process can be started: {error}")
            if self._child is None:
                return
        self._listeners = tuple(
            threading.Thread(target=target, args=(self._child,), name="learner's child", daemon=True)
            for target in (self._listen, self._converse)
        )
        for listener in self._listeners:
            listener.start()
        self._enter("watching" if watches else "at work")

    def _listen(self, child: subprocess.Popen[str]) -> None:
        assert child.stderr is not None
        with child.stderr as lines:
            for line in lines:
                if text := line.strip().removesuffix(f"; {AGAIN_BY_HAND}"):  # no Ctrl-C reaches it, and none was needed
                    self._told.say(f"learning: {text}")

    def _converse(self, child: subprocess.Popen[str]) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(OSError, ValueError), child.stdin, child.stdout:  # it ended, and has no use for an answer
            for line in child.stdout:
                child.stdin.write(self._told.answer(line) + "\n")
                child.stdin.flush()

    def _reap(self, now: float) -> None:
        assert self._child is not None
        if self._guard is not None:
            self._dismiss(self._guard)  # first, for the child's number may be another process's soon
        code = self._child.wait()
        self._child, self._ended = None, now
        if self._is_cut_off and code == -signal.SIGKILL:
            self._told.killed()
        if self._is_cut_off or code in _DECIDED:  # there is a checkpoint; or there may be more to do
            self._known = -1
        elif code < 0:  # by the system, for want of memory, say: at once it would only happen again
            self._told.say(f"learning: the training was ended by signal {-code}")
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
            self._told.state(state)

    def _give_way(self) -> None:
        """Stop a child at work, or end it."""
        if self._state != "at work" or self._child is None:
            return
        if self._plan is not None and self._plan.is_ended:
            self._signal(signal.SIGKILL)
            self._is_cut_off = True
            self._enter("ending")
        else:
            self._signal(signal.SIGSTOP)
            self._enter("stopped")

    def _end_with_checkpoint(self) -> None:
        self._is_cut_off = True
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._child is not None
        with suppress(ProcessLookupError, PermissionError):  # it has ended: macOS refuses a group of the dead alone
            os.killpg(self._child.pid, number)
