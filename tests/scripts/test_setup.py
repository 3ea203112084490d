"""Set-up installs what is asked for, once, and gets a fast BLAS in the first way that this machine has.

`scripts/setup.sh` is run for real, in a checkout and on a machine of files: the tools that it calls are small programs
that write down how they were called, and do what the files of the machine say.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from draftloop.runtime import blas

REAL = [
    *("sh", "cat", "cut", "sed", "grep", "tr", "paste", "cksum", "dirname"),
    *("rm", "mkdir", "mv", "cp", "find", "head", "touch", "ln", "env"),
]
LIBRARY = ".venv/lib/draftloop-blas/libopenblas.so.0"

UNAME = "echo Linux"
ID = "[ -e $MACHINE/root ] && echo 0 || echo 1000"
TIMEOUT = "shift 2; exec $@"  # without --foreground SECONDS

PYTHON = f"""
case $* in
    -) cat >/dev/null ;;
    --version) echo Python 3.13.0 ;;
    '-m venv '*) mkdir -p $3/bin $3/lib && ln -s $MACHINE/tools/python3 $3/bin/python ;;
    '-m pip --version') ;;
    '-m pip install '*--target*) exec $MACHINE/tools/index $@ ;;
    '-m pip install '*) echo a line of pip; [ ! -e $MACHINE/no-packages ] ;;
    *REMEDY*) echo 'install OpenBLAS' ;;
    *blas*) [ -e $MACHINE/system-blas ] || {{ [ -e {LIBRARY} ] && ! grep -q 'of another machine' {LIBRARY}; }} ;;
esac
"""

UV = """
case $* in
    'venv '*) for last; do :; done; exec python3 -m venv $last ;;
    *--target*) exec $MACHINE/tools/index $@ ;;
esac
"""

INDEX = """
[ -e $MACHINE/index ] || exit 1
while [ $1 != --target ]; do shift; done
mkdir -p $2/scipy_openblas32/lib
echo "of the wheel" >$2/scipy_openblas32/lib/libopenblas_python.so
echo "of the wheel" >$2/scipy_openblas32/lib/libgfortran-1.so.5
"""

APT_GET = """
available() { [ -e $MACHINE/lists ] && [ -e $MACHINE/mirror ]; }
case " $* " in
    *' update '*) [ -e $MACHINE/mirror ] && touch $MACHINE/lists && exit ;;
    *' --no-download '*) touch $MACHINE/system-blas && exit ;;
    *' install '*) available && exit ;;
    *' download libquadmath0 '*) [ ! -e $MACHINE/arm ] && touch libquadmath0.deb && exit ;;
    *' download '*) available && touch libopenblas0.deb libgfortran5.deb && exit ;;
esac
echo 'E: apt-get has failed'
exit 100
"""

DPKG_DEB = """
cd ${2%/*} 2>/dev/null
there=$3/usr/lib/here
mkdir -p $there/openblas-pthread
case $2 in
    libopenblas0*)
        echo "of the package $(cat $MACHINE/foreign)" >$there/openblas-pthread/libopenblasp-r0.3.so
        ln -s libopenblasp-r0.3.so $there/openblas-pthread/libopenblas.so.0
        echo "the interface alone" >$there/openblas-pthread/libblas.so.3 ;;
    libgfortran5*)
        [ ! -e $MACHINE/full ] || exit 2
        echo "of the package" >$there/libgfortran.so.5.0.0
        ln -s libgfortran.so.5.0.0 $there/libgfortran.so.5 ;;
    libquadmath0*) echo "of the package" >$there/libquadmath.so.0 ;;
esac
"""

TOOLS = {
    "uname": UNAME,
    "id": ID,
    "timeout": TIMEOUT,
    "python3": PYTHON,
    "index": INDEX,
    "apt-get": APT_GET,
    "dpkg-deb": DPKG_DEB,
}
WRITTEN_DOWN = ("apt-get", "dpkg-deb", "index", "uv", "python3")


@dataclass(frozen=True)
class Machine:
    """A checkout and a machine of files, below one directory."""

    checkout: Path
    directory: Path

    def has(self, *names: str) -> Machine:
        """Give it a property: a file that its tools look at."""
        for name in names:
            (self.directory / name).touch()
        return self

    def tool(self, name: str, program: str) -> Machine:
        """Give it a tool."""
        file = self.directory / "tools" / name
        note = f"echo {name} $* >>$MACHINE/calls\n" if name in WRITTEN_DOWN else ""
        file.write_text(f"#!/bin/sh\n{note}{program}\n")
        file.chmod(0o755)
        return self

    def without(self, *names: str) -> Machine:
        """Take tools away."""
        for name in names:
            (self.directory / "tools" / name).unlink()
        return self

    def set_up(self, *arguments: str, code: int = 0, **variables: str) -> str:
        """Run set-up, which ends with `code`; what it said."""
        (self.directory / "calls").write_text("")
        environment = {"PATH": str(self.directory / "tools"), "MACHINE": str(self.directory), **variables}
        command = ["/bin/sh", str(self.checkout / "scripts" / "setup.sh"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        return done.stderr

    def calls(self, *words: str) -> list[str]:
        """How its tools were called in the last set-up, where all of `words` were among it."""
        lines = (self.directory / "calls").read_text().splitlines()
        return [line for line in lines if all(word in line.split() for word in words)]

    def ways(self) -> list[str]:
        """By what it tried to get a BLAS, in this order."""
        kinds = {"update": ("apt-get", "update"), "install": ("apt-get", "--no-download")}
        kinds |= {"download": ("apt-get", "libgfortran5"), "index": ("index",)}
        found = [name for line in self.calls() for name, words in kinds.items() if set(words) <= set(line.split())]
        return list(dict.fromkeys(found))

    def library(self) -> str | None:
        """What the BLAS of the environment says of itself; it is whole, and nothing lies beside it."""
        assert not (self.checkout / ".venv/lib/draftloop-blas.new").exists()
        file = self.checkout / LIBRARY
        assert file.exists() == file.parent.exists()
        return file.read_text().strip() if file.exists() else None


@pytest.fixture
def machine(tmp_path: Path, root: Path) -> Machine:
    """A Linux with Debian's tools, whose mirror and index answer, for a user without root; no BLAS yet."""
    made = Machine(tmp_path / "checkout", tmp_path / "machine")
    (made.checkout / "scripts").mkdir(parents=True)
    shutil.copy(root / "scripts" / "setup.sh", made.checkout / "scripts")
    (made.checkout / "pyproject.toml").write_text("[project]\n")
    (made.directory / "tools").mkdir(parents=True)
    for name in REAL:
        (made.directory / "tools" / name).symlink_to(shutil.which(name) or pytest.skip(f"no {name}"))
    for name, program in TOOLS.items():
        made.tool(name, program)
    return made.has("lists", "mirror", "index")


def test_nothing_is_fetched_where_a_fast_blas_is_found(machine: Machine) -> None:
    said = machine.has("system-blas", "root").set_up()
    assert machine.ways() == []
    assert "BLAS" not in said
    assert said.splitlines()[-1] == "setup: ready: Python 3.13.0, MLX for cpu"


def test_what_set_up_asks_is_what_the_command_line_finds(root: Path) -> None:
    """By the real Python: the machines of the other tests only look for the word."""
    found = re.search(r"finds_blas\(\) \{\n.*? -c '(.*?)'", (root / "scripts/setup.sh").read_text())
    assert found is not None
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    asked = subprocess.run([sys.executable, "-c", found[1]], env=environment, check=False, capture_output=True)
    assert (asked.returncode, asked.stderr) == (int(blas.is_needed() and blas.loaded() is None), b"")


def test_root_gets_the_package_for_the_system_and_is_told_so(machine: Machine) -> None:
    said = machine.has("root").set_up()
    assert machine.ways() == ["install"]
    assert "setup: no fast BLAS found: installing libopenblas0-pthread with apt-get\n" in said
    assert machine.library() is None


def test_package_lists_are_fetched_where_they_are_missing(machine: Machine) -> None:
    (machine.directory / "lists").unlink()
    machine.has("root").set_up()
    assert machine.ways() == ["update", "install"]


def test_an_installation_takes_nothing_away_and_asks_nothing(machine: Machine) -> None:
    machine.has("root").set_up()
    (line,) = machine.calls("--no-download")
    assert {"-y", "--no-remove", "--no-install-recommends", "libopenblas0-pthread"} <= set(line.split())


@pytest.mark.parametrize(
    ("properties", "beside"),
    [
        ((), ["libgfortran.so.5", "libopenblas.so.0", "libquadmath.so.0"]),
        (("arm",), ["libgfortran.so.5", "libopenblas.so.0"]),
    ],
)
def test_without_root_the_package_is_unpacked_into_the_environment_with_what_it_needs(
    machine: Machine, properties: tuple[str, ...], beside: list[str]
) -> None:
    said = machine.has(*properties).set_up()
    assert machine.ways() == ["download"]
    assert "setup: no fast BLAS found: unpacking libopenblas0-pthread into .venv\n" in said
    assert machine.library() == "of the package"
    files = sorted((machine.checkout / LIBRARY).parent.iterdir())
    assert [file.name for file in files] == beside
    assert not any(file.is_symlink() for file in files)


@pytest.mark.parametrize(
    ("missing", "tried"),
    [
        (("lists",), ["download", "index"]),
        (("mirror",), ["download", "index"]),
        (("tools/dpkg-deb",), ["index"]),
        (("tools/dpkg-deb", "tools/apt-get"), ["index"]),
    ],
)
def test_where_there_is_no_such_package_a_wheel_is_taken(
    machine: Machine, missing: tuple[str, ...], tried: list[str]
) -> None:
    for name in missing:
        (machine.directory / name).unlink()
    machine.set_up()
    assert machine.ways() == tried
    assert machine.library() == "of the wheel"
    names = sorted(file.name for file in (machine.checkout / LIBRARY).parent.iterdir())
    assert names == ["libgfortran-1.so.5", "libopenblas.so.0"]


def test_root_goes_through_all_ways_in_their_order(machine: Machine) -> None:
    (machine.directory / "mirror").unlink()
    said = machine.has("root").set_up()
    assert machine.ways() == ["update", "download", "index"]
    assert [line.split(": ")[1] for line in said.splitlines() if "openblas" in line] == [
        "no fast BLAS found",
        "that failed",
        "that failed",
    ]


def test_on_a_linux_without_apt_nothing_is_said_of_it(machine: Machine) -> None:
    said = machine.has("root").without("apt-get", "dpkg-deb").set_up()
    assert "setup: no fast BLAS found: installing the wheel scipy-openblas32 into .venv\n" in said
    assert "apt-get" not in said


def test_uv_installs_the_wheel_too(machine: Machine) -> None:
    machine.tool("uv", UV).without("apt-get").set_up()
    assert machine.calls("uv", "--target")
    assert machine.library() == "of the wheel"


def test_a_package_that_cannot_be_unpacked_whole_leaves_nothing(machine: Machine) -> None:
    machine.has("full").set_up()
    assert machine.ways() == ["download", "index"]
    assert machine.library() == "of the wheel"


def test_a_library_that_does_not_load_is_taken_away_again(machine: Machine) -> None:
    (machine.directory / "foreign").write_text("of another machine")
    (machine.directory / "index").unlink()
    said = machine.set_up()
    assert machine.ways() == ["download", "index"]
    assert machine.library() is None
    assert "setup: no fast BLAS: all works" in said


def test_where_no_way_works_set_up_succeeds_and_says_in_one_line_what_to_do(machine: Machine) -> None:
    for name in ("mirror", "index"):
        (machine.directory / name).unlink()
    said = machine.set_up()
    (line,) = (line for line in said.splitlines() if "many times slower" in line)
    assert line.startswith("setup: no fast BLAS: all works, but many times slower; install OpenBLAS;")
    assert ".venv/draftloop-blas.log" in line
    assert "E: apt-get has failed" in (machine.checkout / ".venv/draftloop-blas.log").read_text()
    assert said.splitlines()[-1].startswith("setup: ready")


def test_who_asks_for_set_up_has_it_tried_again_at_once(machine: Machine, root: Path) -> None:
    (machine.directory / "index").unlink()
    machine.without("apt-get").set_up()
    machine.set_up(BLAS_AGAIN="setup")
    assert machine.ways() == ["index"]
    make = shutil.which("make") or pytest.skip("no make")
    for goal, asked in (("setup", "setup"), ("demo", ""), ("dev", "dev"), ("test", "")):
        shown = subprocess.run([make, "-n", goal], cwd=root, capture_output=True, text=True, check=True).stdout
        assert f"BLAS_AGAIN={asked} sh scripts/setup.sh" in shown, goal


def test_a_later_set_up_tries_again_after_an_hour_and_whenever_it_installs(machine: Machine) -> None:
    (machine.directory / "index").unlink()
    machine.without("apt-get").set_up()
    assert machine.ways() == ["index"]
    assert "many times slower" in machine.set_up()
    assert machine.ways() == []
    machine.set_up("dev")
    assert machine.ways() == ["index"]
    hours = 2 * 3600
    then = time.time() - hours
    os.utime(machine.checkout / ".venv/draftloop.no-blas", (then, then))
    machine.has("index").set_up()
    assert machine.ways() == ["index"]
    assert machine.library() == "of the wheel"
    assert machine.set_up() == ""
    assert machine.calls("index") == []


@pytest.mark.parametrize("variables", [{"MLX_BUILD": "metal"}, {"MLX_BUILD": "cuda12"}, {"DRAFTLOOP_NO_OPENBLAS": "1"}])
def test_no_blas_is_got_where_none_is_needed_or_wanted(machine: Machine, variables: dict[str, str]) -> None:
    said = machine.has("root").set_up(**variables)
    assert machine.ways() == []
    assert "BLAS" not in said


def test_a_user_gets_no_test_tools_and_a_developer_adds_them(machine: Machine) -> None:
    machine.has("system-blas")
    machine.set_up()
    assert machine.calls("pip", "--editable", ".[cpu]")
    machine.set_up("dev")
    assert machine.calls("pip", "--editable", ".[cpu,dev]")
    assert not machine.calls("venv")
    for arguments in ((), ("dev",)):
        assert machine.set_up(*arguments) == ""
        assert not machine.calls("--editable")


def test_clients_come_with_the_test_tools_and_stay(machine: Machine) -> None:
    machine.has("system-blas").set_up("dev")
    machine.set_up("clients")
    assert machine.calls("pip", "--editable", ".[cpu,dev,clients]")
    assert not machine.calls("venv")
    for arguments in ((), ("dev",), ("clients",)):
        assert machine.set_up(*arguments) == ""
        assert not machine.calls("--editable")
    (machine.checkout / "pyproject.toml").write_text("[project]\nversion = '2'\n")
    machine.set_up("dev")
    assert machine.calls("pip", "--editable", ".[cpu,dev,clients]")


def test_clients_and_what_makes_real_models_stay_beside_each_other(machine: Machine) -> None:
    machine.has("system-blas").set_up("clients")
    machine.set_up("real")
    assert machine.calls("pip", "--editable", ".[cpu,dev,clients,real]")
    assert not machine.calls("venv")
    for arguments in ((), ("dev",), ("clients",), ("real",)):
        assert machine.set_up(*arguments) == ""


def test_who_has_the_test_tools_keeps_them_when_draftloop_is_installed_anew(machine: Machine) -> None:
    machine.has("system-blas").set_up("dev")
    (machine.checkout / "pyproject.toml").write_text("[project]\nversion = '2'\n")
    machine.set_up()
    assert machine.calls("pip", "--editable", ".[cpu,dev]")
    assert not machine.calls("venv")


@pytest.mark.parametrize(("arguments", "what"), [((), "."), (("dev",), ".[dev]")])
def test_a_mac_needs_no_extra_for_mlx(machine: Machine, arguments: tuple[str, ...], what: str) -> None:
    machine.set_up(*arguments, MLX_BUILD="metal")
    assert machine.calls("pip", "--editable", what)


def test_an_unknown_argument_is_refused(machine: Machine) -> None:
    assert "'test' is unknown" in machine.set_up("test", code=1)


def test_another_build_of_mlx_gets_an_environment_of_its_own(machine: Machine) -> None:
    machine.has("system-blas").set_up("dev")
    machine.set_up(MLX_BUILD="cuda12")
    assert machine.calls("venv")
    assert machine.calls("pip", "--editable", ".[cuda12,dev]")


def test_what_pip_says_is_shown_only_when_it_fails(machine: Machine) -> None:
    machine.has("system-blas")
    said = machine.set_up()
    assert "a line of pip" not in said
    assert len(said.splitlines()) <= 4
    (machine.checkout / "pyproject.toml").write_text("")
    said = machine.has("no-packages").set_up(code=1)
    assert "a line of pip" in said
    assert "installing failed (see above)" in said
