"""OpenBLAS is in place before MLX, whichever module of the package comes first."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from draftloop import blas


def installed() -> bool:
    try:
        ctypes.CDLL("libopenblas.so.0")
    except OSError:
        return False
    return True


def loaded_after(program: str, root: Path) -> str:
    """What `blas.loaded()` says in a fresh process that ran `program`."""
    script = f"{program}; from draftloop import blas; print(blas.loaded())"
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module", ["benchmark", "collect", "demo", "live", "pair", "speculative.rules", "training.train"]
)
def test_any_module_that_comes_first_puts_openblas_before_mlx(module: str, root: Path) -> None:
    expected = "libopenblas.so.0" if blas.is_needed() and installed() else "None"
    assert loaded_after(f"import draftloop.{module}", root) == expected


def test_nothing_is_claimed_where_mlx_was_imported_first(root: Path) -> None:
    assert loaded_after("import mlx.core", root) == "None"
