"""What a job runs, where from, and with which variables."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from draftloop.errors import ScheduleError
from draftloop.scheduling.job import Daily, Every, carried, entry_point, identity_of, interpreter, search_path

from .conftest import MakeJob


def test_the_command_names_every_path_in_full(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(config_file=tmp_path / "my.yaml")
    assert job.command == (
        *(sys.executable, "-P", "-m", "draftloop"),
        *("--data-dir", f"{tmp_path}/data", "-c", f"{tmp_path}/my.yaml"),
        *("schedule", "run"),
    )
    assert "-c" not in make_job().command
    assert job.log == tmp_path / "data" / "runs" / "schedule.log"


def test_the_interpreter_is_the_environments_and_not_what_its_symlink_points_to() -> None:
    assert interpreter() == Path(sys.executable)
    assert interpreter().parent == Path(sysconfig.get_path("scripts"))


def test_a_data_directory_has_one_id_however_it_is_reached(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    names = {identity_of(tmp_path / name) for name in ("data", "link", "link/../data")}
    assert names == {make_job().id}
    assert identity_of(tmp_path / "other") not in names
    assert len(make_job().id) == 8


def test_how_often_is_said_in_words() -> None:
    said = [str(when) for when in (Every(1), Every(60), Daily(3, 5))]
    assert said == ["every minute", "every 60 minutes", "daily at 03:05"]


def test_settings_and_the_caches_are_carried_and_secrets_are_not() -> None:
    environment = {
        "PATH": "/usr/bin",
        "HF_HOME": "/models",
        "LANG": "de_DE.UTF-8",
        "DRAFTLOOP_TRAINING_LEARNING_RATE": "1e-4",
        "DRAFTLOOP_DATA_DIR": "told by --data-dir",
        "DRAFTLOOP_CONFIG": "told by -c",
        "DRAFTLOOP_API_KEY": "not a setting",
        "HF_TOKEN": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "PYTHONPATH": "src",
        "HF_HUB_CACHE": "",
        "DRAFTLOOP_NO_OPENBLAS": "1",
    }
    assert set(carried(environment, Path("/venv/bin/python"))) == {
        "PATH",
        "HF_HOME",
        "LANG",
        "DRAFTLOOP_TRAINING_LEARNING_RATE",
        "DRAFTLOOP_NO_OPENBLAS",
    }


def folder_with(folder: Path, *programs: str) -> Path:
    folder.mkdir()
    for name in programs:
        (folder / name).touch(mode=0o755)
    return folder


def test_the_path_is_that_of_the_python_and_the_systems_however_long_the_users_is(tmp_path: Path) -> None:
    python = folder_with(tmp_path / "venv") / "python"
    usual = f"{tmp_path}/venv:/usr/local/bin:/usr/bin:/bin"
    for users in ("", "/usr/bin:/bin", f"{tmp_path}/venv/:/usr/bin/:/usr/bin:/sbin:/snap/bin::.:/opt/x/bin"):
        assert carried({"PATH": users}, python) == {"PATH": usual}


def test_a_directory_is_kept_from_which_a_program_comes_that_a_run_calls(tmp_path: Path, monkeypatch) -> None:
    brew, spare = folder_with(tmp_path / "brew", "git"), folder_with(tmp_path / "spare", "git", "g++", "less")
    also = folder_with(tmp_path / "also", "less")
    python = Path("/venv/bin/python")
    found = search_path(f"{also}:{brew}/:{spare}:{brew}:/usr/bin", python)
    assert found == f"{brew}:{spare}:/venv/bin:/usr/local/bin:/usr/bin:/bin"
    for name in ("git", "g++"):
        assert shutil.which(name, path=found) == shutil.which(name, path=f"{also}:{brew}:{spare}:/usr/bin")


def test_a_relative_entry_of_the_path_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder_with(tmp_path / "bin", "git")
    assert search_path("bin:./bin", Path("/venv/bin/python")) == "/venv/bin:/usr/local/bin:/usr/bin:/bin"


@pytest.mark.parametrize("text", ["two\nlines", "a\ttab", "nul\0", "\udce4 undecodable", "\ufffe"], ids=ascii)
def test_what_no_unit_can_hold_is_refused_by_name(text: str, make_job: MakeJob) -> None:
    for fields in ({"directory": Path("/x", text)}, {"config_file": Path("/x", text)}, {"environment": {"LANG": text}}):
        with pytest.raises(ScheduleError, match="which no scheduler's file can hold"):
            make_job(**fields)


def test_an_installed_package_is_started_by_its_name(tmp_path: Path) -> None:
    python = environment_without_us(tmp_path)
    package = tmp_path / "installed" / "draftloop"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    add_to_path(python, package.parent)
    assert entry_point(python, package) == ("-m", "draftloop")


def test_a_checkout_that_is_not_installed_is_started_by_its_main_file(tmp_path: Path, root: Path) -> None:
    assert entry_point(environment_without_us(tmp_path)) == (str(root / "src" / "main.py"),)


def test_another_draftloop_that_is_installed_is_not_mistaken_for_this_one(tmp_path: Path, root: Path) -> None:
    python = environment_without_us(tmp_path)
    (tmp_path / "other" / "draftloop").mkdir(parents=True)
    (tmp_path / "other" / "draftloop" / "__init__.py").touch()
    add_to_path(python, tmp_path / "other")
    assert entry_point(python) == (str(root / "src" / "main.py"),)


def test_what_only_pythonpath_finds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "somewhere" / "draftloop"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    with pytest.raises(ScheduleError, match=r"only by way of PYTHONPATH.*pip install"):
        entry_point(environment_without_us(tmp_path), package)


def environment_without_us(folder: Path) -> Path:
    """The interpreter of a new virtual environment with our dependencies but without draftloop."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    add_to_path(python, Path(sysconfig.get_path("purelib")))  # whose .pth files, our own among them, are not read
    return python


def add_to_path(python: Path, folder: Path) -> None:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    Path(done.stdout.strip(), f"{folder.name}.pth").write_text(f"{folder}\n")
