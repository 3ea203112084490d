"""The rights of an ordinary user for a while, also where the tests run as root, whom no mode keeps out."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import pytest

_VERSION_3 = 0x20080522
_OVERRIDE = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@contextmanager
def of_an_ordinary_user() -> Iterator[None]:
    """Let this thread be kept out by modes; as root on Linux by laying down the capabilities that pass them over."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root cannot lay down its rights here")
    header, before = (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    assert libc.capget(header, before) == 0
    less = (ctypes.c_uint32 * 6)(*before)
    less[0] &= ~_OVERRIDE
    assert libc.capset(header, less) == 0
    as_the_kernel_does = partial(os.access, effective_ids=os.access in os.supports_effective_ids)
    try:
        with patch.object(os, "access", as_the_kernel_does):  # by itself it asks what the real user may, who is root
            yield
    finally:
        assert libc.capset(header, before) == 0
