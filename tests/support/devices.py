"""The device that MLX computes on, where a test is about one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx


@contextmanager
def cpu() -> Iterator[None]:
    """Where float32 gives the same bits in every process that does the same operations."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        yield
    finally:
        mx.set_default_device(before)
