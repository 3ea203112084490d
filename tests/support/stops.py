"""A request to stop that is made in the middle of something, at the same place every time."""

from __future__ import annotations

from draftloop.runtime.signals import StopRequest


class StopAfter(StopRequest):
    """Asks to stop after having been looked at so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._left = looks

    def __bool__(self) -> bool:
        self._left -= 1
        return self._left < 0
