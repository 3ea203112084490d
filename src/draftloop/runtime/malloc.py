"""Let the C library keep what MLX frees on a Linux CPU; knows nothing of models.

There MLX has no cache of its own: every array of every operation is asked of the C library and given back. From some
hundred kilobytes on glibc passes that on to the kernel, which clears each page before it is touched again: a quarter of
a training step. What lies at the end of the heap is kept up to a bound, what lies between live arrays until somebody
asks to `give_back`: room that the next arrays take.
"""

from __future__ import annotations

import ctypes
import os

KEPT_BYTES = 256 * 10**6  # at the end of the heap, before it is given back
LARGEST = 32 << 20  # bytes of one array in the heap, 32 MiB; glibc takes no more
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>
_OWN_WORDS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """Have glibc keep some of what is freed; says whether it does.

    Where the environment says how glibc is to do it, or the C library is another one, all is left as it is.
    """
    if any(name in os.environ for name in _OWN_WORDS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    taken = [mallopt(*setting) for setting in ((_MMAP_THRESHOLD, LARGEST), (_TRIM_THRESHOLD, KEPT_BYTES))]
    return all(taken) and mallopt(_TOP_PAD, KEPT_BYTES // 4) == 1


def give_back() -> None:
    """Return to the system all that is kept and not in use, where the C library knows how."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
