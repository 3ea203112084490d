"""Seconds of work: time while the process is stopped or the machine sleeps does not count. Knows nothing of trainings.

A thread notes once a second that the process runs. A gap longer than a busy machine explains is a pause, which uses up
nothing of a training's time limit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BEAT_S = 1.0
PAUSE_S = 10.0  # without a beat


class WorkingTime:
    """A clock that stands still in a pause. Every second counts before the first beat.

    Args:
        clock: seconds that never go backward.
        cpu: seconds of processor time of this process: a gap in which it computed was no pause, only a thread that did
            not get its turn.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, cpu: Callable[[], float] = time.process_time
    ) -> None:
        self._clock, self._cpu = clock, cpu
        self._paused = 0.0
        self._last: tuple[float, float] | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> WorkingTime:
        self.beat()
        self._thread = threading.Thread(target=self._keep_beating, name="working time", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def now(self) -> float:
        """Seconds of work since some moment in the past."""
        with self._lock:
            now = self._look()  # the main thread may be the first to run after a pause
            return now - self._paused

    def beat(self) -> None:
        """Note that the process runs."""
        with self._lock:
            self._last = self._look(), self._cpu()

    def _look(self) -> float:
        now, cpu = self._clock(), self._cpu()
        if self._last is not None:
            gap, computed = now - self._last[0], cpu - self._last[1]
            if gap > PAUSE_S and computed < gap / 2:
                self._paused += gap - BEAT_S
            self._last = now, cpu
        return now

    def _keep_beating(self) -> None:
        while not self._over.wait(BEAT_S):
            self.beat()
