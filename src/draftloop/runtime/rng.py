"""MLX's global random state as a value: read it, and restore it. Knows nothing of what is sampled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx


def get_state() -> mx.array:
    """The key that the next sample splits, (2,) uint32."""
    return mx.random.state[0]


def set_state(key: mx.array) -> None:
    """Make `key` the one that the next sample splits: a key is the two halves of the seed that gives it."""
    high, low = key.tolist()
    mx.random.seed((high << 32) | low)


@contextmanager
def unchanged() -> Iterator[None]:
    """Restore the state after the block, whatever the block samples."""
    key = get_state()
    try:
        yield
    finally:
        set_state(key)
