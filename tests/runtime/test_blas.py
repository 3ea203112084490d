"""A fast BLAS is in place before MLX, whichever module comes first: the system's, or the one in the environment.

What MLX brings stands in for OpenBLAS: `libblas` has all that MLX calls, `libquadmath` nothing of it, and `liblapack`
needs the other two, which it finds beside itself by their own names alone.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from draftloop.runtime import blas

PREPARE = "from draftloop import prepare_process; prepare_process()"
SAY = "from draftloop.runtime import blas; print(blas.loaded(), blas.serving_file())"


def installed() -> bool:
    return any(map(opens, blas.CANDIDATES)) or opens(str(Path(sys.prefix, "lib", blas.OWN)))


def opens(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def said_after(program: str, root: Path, **variables: str) -> list[str]:
    """In a fresh process that ran `program`: what `blas.loaded()` says, and the file that serves products."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), **variables}
    command = [sys.executable, "-c", f"{program}; {SAY}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()


def parts(name: str) -> Path:
    """One of the libraries that MLX's CPU build brings."""
    spec = find_spec("mlx")
    homes = spec.submodule_search_locations if spec else None
    found = [file for home in homes or () for file in Path(home).parent.glob(f"mlx_cpu.libs/{name}-*.so.*")]
    return found[0] if found else pytest.skip("no CPU build of MLX, whose libraries stand in for OpenBLAS")


@dataclass(frozen=True)
class Machine:
    """A directory of the system's libraries, which come before its others, and an environment, both empty at first."""

    system: Path
    prefix: Path

    def put(self, library: str, *places: str) -> None:
        """A part of MLX as files of those names: of the system, or of the environment."""
        for place in places:
            file = self.prefix / "lib" / place if "/" in place else self.system / place
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(parts(library), file)

    def found(self, root: Path, then: str = "pass", **variables: str) -> list[str]:
        """The same as `said_after`, in this environment."""
        program = f"import sys; sys.prefix = {str(self.prefix)!r}; {PREPARE}; {then}"
        return said_after(program, root, LD_LIBRARY_PATH=str(self.system), **variables)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Nothing is found on it: the loader ends at the first file of a name, and these hold nothing."""
    if not blas.is_needed() or os.environ.get(blas.OFF):
        pytest.skip("no OpenBLAS is needed, or wanted, here")
    made = Machine(tmp_path / "system", tmp_path / "environment")
    made.system.mkdir()
    for name in blas.CANDIDATES:
        (made.system / name).touch()
    return made


def test_the_one_in_the_environment_is_found_where_the_system_has_none(machine: Machine, root: Path) -> None:
    assert machine.found(root) == ["None", "None"]
    machine.put("libblas", blas.OWN)
    assert machine.found(root) == [blas.OWN, str(machine.prefix / "lib" / blas.OWN)]


def test_mlx_takes_its_products_from_the_one_that_was_found(machine: Machine, root: Path, tmp_path: Path) -> None:
    machine.put("libblas", blas.OWN)
    log = tmp_path / "bindings"
    machine.found(root, "import mlx.core", LD_DEBUG="bindings", LD_DEBUG_OUTPUT=str(log))
    lines = [line for file in tmp_path.glob("bindings.*") for line in file.read_text().splitlines()]
    (line,) = (line for line in lines if "/libmlx.so " in line and line.endswith("`cblas_sgemm'"))
    assert f" to {machine.prefix / 'lib' / blas.OWN} " in line


def test_the_systems_comes_before_the_one_in_the_environment_and_the_threaded_one_first(
    machine: Machine, root: Path
) -> None:
    machine.put("libblas", blas.OWN, "libopenblas.so.0")
    assert machine.found(root) == ["libopenblas.so.0", str(machine.system / "libopenblas.so.0")]
    machine.put("libblas", "libopenblasp.so.0")  # Fedora's; its libopenblas.so.0 works on one core
    assert machine.found(root)[0] == "libopenblasp.so.0"


def test_a_library_without_what_mlx_calls_is_passed_over(machine: Machine, root: Path) -> None:
    machine.put("libquadmath", "libopenblasp.so.0", "libopenblas.so.0")
    machine.put("libblas", blas.OWN)
    assert machine.found(root)[0] == blas.OWN
    machine.put("libquadmath", blas.OWN)
    assert machine.found(root) == ["None", "None"]


def test_what_a_library_in_the_environment_needs_is_taken_from_beside_it(machine: Machine, root: Path) -> None:
    folder = Path(blas.OWN).parent
    machine.put("liblapack", blas.OWN)
    assert machine.found(root) == ["None", "None"]
    for part in ("libgfortran", "libquadmath"):
        machine.put(part, str(folder / parts(part).name))
    assert machine.found(root) == ["None", "None"]
    machine.put("libblas", str(folder / "libgfortran.so.5"))
    assert machine.found(root)[0] == blas.OWN


def test_none_is_loaded_where_none_is_wanted(machine: Machine, root: Path) -> None:
    machine.put("libblas", blas.OWN, "libopenblas.so.0")
    assert machine.found(root, **{blas.OFF: "1"}) == ["None", "None"]
    assert machine.found(root, **{blas.OFF: ""})[0] == "libopenblas.so.0"


def test_importing_draftloop_changes_nothing_in_a_process_and_preparing_it_does(root: Path) -> None:
    every = "import draftloop, draftloop.models.pair, draftloop.training.train, draftloop.cli"
    assert said_after(f"{every}", root)[0] == "None"
    wanted = blas.is_needed() and installed() and not os.environ.get(blas.OFF)
    assert (said_after(PREPARE, root)[0] != "None") == wanted


def test_the_command_line_puts_openblas_before_mlx(root: Path) -> None:
    wanted = blas.is_needed() and installed() and not os.environ.get(blas.OFF)
    command = "from draftloop.cli import run_and_exit\ntry: run_and_exit(['--version'])\nexcept SystemExit: print()\n"
    said = said_after(f"exec({command!r})", root)
    assert (said[-2] != "None") == wanted


def test_nothing_is_claimed_where_mlx_was_imported_first(root: Path) -> None:
    assert said_after(f"import mlx.core; {PREPARE}", root) == ["None", "None"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has builds of MLX to choose from")
def test_a_cuda_build_of_mlx_needs_no_openblas_and_the_cpu_build_does(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(blas, "_CUDA_BUILDS", ("a-build-that-is-absent",))
    assert blas.is_needed()
    (tmp_path / "mlx_cuda_12-0.32.dist-info").mkdir()
    (tmp_path / "mlx_cuda_12-0.32.dist-info" / "METADATA").write_text("Name: mlx-cuda-12\nVersion: 0.32\n")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    assert not blas.is_needed()
