"""What a server and its child import at their beginning: neither gives way, or beside busy processes none comes far."""

from __future__ import annotations

import os


def _stay(_more: int) -> int:
    return 0


os.nice = _stay
