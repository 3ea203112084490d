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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has builds of MLX to choose from")
def test_a_cuda_build_of_mlx_needs_no_openblas_and_the_cpu_build_does(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(blas, "_CUDA_BUILDS", ("a-build-that-is-absent",))
    assert blas.is_needed()
    (tmp_path / "mlx_cuda_12-0.32.dist-info").mkdir()
    (tmp_path / "mlx_cuda_12-0.32.dist-info" / "METADATA").write_text("Name: mlx-cuda-12\nVersion: 0.32\n")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    assert not blas.is_needed()
