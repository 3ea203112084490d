"""Lets the C library keep the memory that MLX frees on a Linux CPU. Knows nothing of models.

There MLX has no cache of its own: it takes every array of every operation from the C library, and returns it. From some
hundred kilobytes on, glibc passes that on to the kernel, which clears each page before it is used again: that takes a
quarter of a training step. With `keep_freed` glibc keeps free memory for the next arrays: up to a bound at the end of
the heap, and without one between live arrays, until `give_back`.
"""

from __future__ import annotations

import ctypes
import os

KEPT_BYTES = 256 * 10**6  # at the end of the heap, before it is given back
LARGEST = 32 << 20  # bytes of one array in the heap, 32 MiB; glibc takes no more
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>
_OWN_WORDS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """Let glibc keep some of the memory that is freed; returns whether it does.

    Where the environment has settings of glibc's own, or the C library is another one, nothing is changed.
    """
    if any(name in os.environ for name in _OWN_WORDS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    taken = [mallopt(*setting) for setting in ((_MMAP_THRESHOLD, LARGEST), (_TRIM_THRESHOLD, KEPT_BYTES))]
    return all(taken) and mallopt(_TOP_PAD, KEPT_BYTES // 4) == 1


def give_back() -> None:
    """Return all free memory to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
