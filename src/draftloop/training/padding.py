"""The sizes that a micro-batch is filled up to, so that few shapes repeat. Knows no mlx."""

from __future__ import annotations

LENGTH_STEP = 16  # of the ids of a row
POSITION_STEP = 64  # of the supervised positions of a batch


def round_up(count: int, step: int) -> int:
    """The next multiple of `step`, at least one: an array of size 0 is no shape that models take."""
    return max(1, -(-count // step)) * step
