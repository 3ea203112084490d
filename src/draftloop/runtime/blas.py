"""Puts a fast BLAS under MLX on Linux CPUs, before MLX is first imported. Knows nothing of models.

The CPU wheel of MLX links the reference BLAS. A symbol that is already in the process wins over it, so loading
OpenBLAS globally first makes float32 matrix products about thirty times faster without rebuilding anything. The
system's own OpenBLAS comes first; else the one that `scripts/setup.sh` put into this environment.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

REMEDY = "install OpenBLAS (Debian/Ubuntu: apt-get install libopenblas0-pthread; Fedora: dnf install openblas-threads)"
OFF = "DRAFTLOOP_NO_OPENBLAS"  # in the environment, and not empty: MLX keeps its reference BLAS
IDLE = "4"  # its threads sleep after 2**4 cycles without work; the default is 2**26, on the cores that MLX needs
# Fedora's threaded one, which has a serial one beside it; Debian's, and most others'; where only `-dev` was unpacked
CANDIDATES = ("libopenblasp.so.0", "libopenblas.so.0", "libopenblas.so")
OWN = "draftloop-blas/libopenblas.so.0"  # below the `lib` of the environment
_ITS_OWN_LIBRARIES = ("libquadmath.so.0", "libgfortran.so.5")  # each before what needs it
_CUDA_BUILDS = ("mlx-cuda-12", "mlx-cuda-13")
_loaded: str | None = None


class _Symbol(ctypes.Structure):
    """`Dl_info` of dlfcn.h: the file and the symbol that an address belongs to."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("file_address", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def is_needed() -> bool:
    """True where MLX runs on the reference BLAS: Linux without a CUDA build of MLX, whatever cards there are."""
    return platform.system() == "Linux" and not any(map(_is_installed, _CUDA_BUILDS))


def preload() -> str | None:
    """Load OpenBLAS into the global symbol table once.

    Returns:
        The name of the library in use, one of CANDIDATES or OWN. None where it is not needed, not wanted (OFF) or not
        there, or where MLX came first.
    """
    global _loaded
    if _loaded is not None or not is_needed() or os.environ.get(OFF) or "mlx.core" in sys.modules:
        return _loaded
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", IDLE)
    _loaded = next((name for name in CANDIDATES if _load(name)), None) or (OWN if _load_own() else None)
    return _loaded


def loaded() -> str | None:
    """The name of the library that `preload` put in place, or None. It names no directory of this machine."""
    return _loaded


def serving_file() -> Path | None:
    """The file whose `cblas_sgemm` this process calls, MLX included; None where there is none."""
    process, symbol = ctypes.CDLL(None), _Symbol()
    function = getattr(process, "cblas_sgemm", None)
    if function is None or not process.dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(symbol)):
        return None
    return Path(os.fsdecode(symbol.file))


def remedy() -> str:
    """What to do where MLX runs on its reference BLAS."""
    return f"unset {OFF}" if os.environ.get(OFF) else f"run `make setup`, which gets one, or {REMEDY}"


def _load(library: str) -> bool:
    """Into the global symbol table, if it is there and has what MLX calls: some are built without the C interface."""
    try:
        if not hasattr(ctypes.CDLL(library), "cblas_sgemm"):
            return False
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _load_own() -> bool:
    """A wheel's library looks beside itself for what it needs; a distribution's needs that in the process already."""
    library = Path(sys.prefix, "lib", OWN)
    for needed in _ITS_OWN_LIBRARIES:
        if (file := library.with_name(needed)).is_file():
            try:
                ctypes.CDLL(str(file))
            except OSError:
                return False
    return _load(str(library))


def _is_installed(package: str) -> bool:
    """By what lies where Python imports from: importing `importlib.metadata` takes longer than all the rest here."""
    pattern = f"{package.replace('-', '_')}-*.dist-info"
    return any(next(Path(folder or ".").glob(pattern), None) is not None for folder in sys.path)
