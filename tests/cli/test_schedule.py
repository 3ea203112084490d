"""`schedule`: shown before it is done, done only with --yes, undone by remove; and what the unit runs."""

from __future__ import annotations

import json
import os
import plistlib
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from stand_ins import CRONTAB, LAUNCHCTL, SYSTEMCTL, write_tool

from draftloop.scheduling.job import identity_of

KINDS = ["cron", "launchd", "systemd"]


@pytest.fixture
def crontab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a stand-in for `crontab` keeps what it is given; systemctl and launchctl are not there."""
    state = tmp_path / "state"
    state.mkdir()
    write_tool(tmp_path / "bin", "crontab", CRONTAB.format(state=state))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return state / "crontab"


@pytest.fixture
def managers(crontab: Path, tmp_path: Path) -> Path:
    """Stand-ins for systemctl and launchctl beside that of `crontab`; returns where they keep their state."""
    units = tmp_path / "home" / ".config" / "systemd" / "user"
    for name, script in (("systemctl", SYSTEMCTL), ("launchctl", LAUNCHCTL)):
        write_tool(tmp_path / "bin", name, script.format(state=crontab.parent, units=units))
    return crontab.parent


@pytest.mark.parametrize("kind", KINDS)
def test_showing_names_everything_and_changes_nothing(kind: str, call, crontab: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = call("schedule", "show", "--kind", kind, "--json").json
    assert (found["status"], found["kind"], found["installed"]) == ("ok", kind, False)
    assert found["id"] == identity_of(tmp_path / "data")
    assert found["when"] == "every 60 minutes"
    assert found["command"][-4:] == ["--data-dir", f"{tmp_path}/data", "schedule", "run"]
    assert bool(found["files"]) == (kind != "cron")
    assert bool(found["lines"]) == (kind == "cron")
    text = call("schedule", "show", "--kind", kind)
    assert (text.code, text.err) == (0, "")
    assert "installed  no\n" in text.out
    assert all(line in text.out for line in found["lines"])
    assert all(path in text.out and unit in text.out for path, unit in found["files"].items())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_machine_without_a_scheduler_gets_an_error_that_says_what_to_do(call, crontab: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "crontab").unlink()
    for command in (["install"], ["install", "--yes"], ["show"]):
        found = call("schedule", *command)
        assert (found.code, found.out, len(found.err.splitlines())) == (2, "", 1)
        assert "no `crontab` on PATH" in found.err
    assert call("schedule", "show", "--kind", "cron").code == 0  # asked for by name, it is still shown


def test_nothing_is_installed_without_yes(call, crontab: Path) -> None:
    found = call("schedule", "install", "--kind", "cron")
    assert (found.code, crontab.exists(), Path("data").exists()) == (0, False, False)
    assert found.err.endswith("nothing was installed; add --yes\n")
    assert "# draftloop begin" in found.out
    found = call("schedule", "install", "--kind", "cron", "--json")
    assert (found.json["installed"], found.json["changed"], crontab.exists()) == (False, False, False)


def test_a_schedule_is_installed_changed_shown_and_removed(call, crontab: Path) -> None:
    crontab.write_text(theirs := "1 2 3 4 5 true\n")
    found = call("schedule", "install", "--kind", "cron", "--yes", "--json").json
    assert (found["installed"], found["changed"]) == (True, True)
    assert crontab.read_text() == theirs + "\n".join(found["lines"]) + "\n"
    changed = call("schedule", "install", "--kind", "cron", "--at", "3:05", "--yes")
    assert "installed: daily at 03:05" in changed.err
    assert "\n5 3 * * * umask" in crontab.read_text()
    assert crontab.read_text().count("# draftloop begin") == 1
    assert "installed  yes\n" in call("schedule", "show", "--kind", "cron", "--at", "03:05").out
    assert "installed  yes\n" in call("schedule", "show", "--kind", "cron").out
    kept = call("schedule", "remove")
    assert (kept.code, kept.err) == (0, "nothing was removed; add --yes\n")
    assert "# draftloop begin" in kept.out
    assert "draftloop" in crontab.read_text()
    gone = call("schedule", "remove", "--yes", "--json").json
    assert (gone["kinds"], gone["removed"], crontab.read_text()) == (["cron"], True, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rhythm", [["--at", "3:10"], ["--every", "30"], ["--every", "1440"]], ids=" ".join)
def test_the_installed_rhythm_is_shown_and_kept(kind: str, rhythm: list[str], call, managers: Path) -> None:
    flags = ("--kind", kind)
    call("schedule", "install", *flags, *rhythm, "--yes")
    asked = call("schedule", "show", *flags, *rhythm, "--json").json
    assert (asked["current"], asked["differs"]) == (True, {})
    found = call("schedule", "show", *flags, "--json").json
    assert (found["installed"], found["current"], found["differs"]) == (True, True, {})
    assert found["when"] == found["installed_when"] == asked["installed_when"]
    assert (found["files"], found["lines"]) == (asked["files"], asked["lines"])
    again = call("schedule", "install", *flags, "--yes")
    assert again.err.splitlines()[-1] == f"installed: {found['when']}"
    assert call("schedule", "show", *flags, "--json").json == found


def test_another_rhythm_is_taken_where_it_is_asked_for_and_named_as_the_difference(call, crontab: Path) -> None:
    call("schedule", "install", "--kind", "cron", "--at", "3:10", "--yes")
    shown = call("schedule", "show", "--kind", "cron", "--every", "30")
    assert "\nwhen       every 30 minutes\n" in shown.out
    assert (
        "\ninstalled  yes, but with another rhythm (daily at 03:10): `schedule install --yes` with the same"
        in shown.out
    )
    found = call("schedule", "install", "--kind", "cron", "--every", "60", "--yes", "--json").json
    assert (found["when"], found["installed_when"], found["current"]) == ("every 60 minutes", "every 60 minutes", True)


def test_after_the_environment_moved_the_difference_is_named_and_install_keeps_the_rhythm(call, crontab: Path) -> None:
    call("schedule", "install", "--kind", "cron", "--at", "3:10", "--yes")
    current = crontab.read_text()
    venv = str(Path(sys.executable).parent)
    crontab.write_text(current.replace(venv, "/old/bin"))
    shown = call("schedule", "show", "--kind", "cron")
    assert "\nwhen       daily at 03:10\n" in shown.out
    assert "installed  yes, but with another command (/old/bin/python -P -m draftloop --data-dir " in shown.out
    assert "schedule run), another PATH (/old/bin:" in shown.out
    differs = call("schedule", "show", "--kind", "cron", "--json").json["differs"]
    assert sorted(differs) == ["PATH", "command"]
    assert "installed: daily at 03:10" in call("schedule", "install", "--kind", "cron", "--yes").err
    assert crontab.read_text() == current


def test_a_setting_that_the_installed_unit_lacks_is_named(call, crontab: Path, monkeypatch) -> None:
    call("schedule", "install", "--kind", "cron", "--yes")
    monkeypatch.setenv("DRAFTLOOP_TRAINING_EPOCHS", "3")
    assert (
        "yes, but with no DRAFTLOOP_TRAINING_EPOCHS: `schedule install --yes`"
        in call("schedule", "show", "--kind", "cron").out
    )


def test_a_rhythm_that_someone_edited_is_named_and_the_default_is_taken(call, crontab: Path) -> None:
    call("schedule", "install", "--kind", "cron", "--yes")
    crontab.write_text(crontab.read_text().replace("\n0 * * * *", "\n15 * * * 1"))
    shown = call("schedule", "show", "--kind", "cron")
    assert (
        "the installed rhythm (15 * * * 1) is none that --every or --at writes; every 60 minutes is taken" in shown.err
    )
    assert "yes, but with another rhythm (15 * * * 1): " in shown.out
    assert call("schedule", "show", "--kind", "cron", "--every", "60").err == ""


def test_removing_what_is_not_there_is_nothing_to_do(call, crontab: Path, tmp_path: Path) -> None:
    found = call("schedule", "remove", "--yes", "--json")
    assert (found.code, found.json["status"]) == (10, "nothing_to_do")
    assert f"nothing is scheduled for {tmp_path}/data" in found.err


def test_two_data_directories_are_scheduled_side_by_side(call, crontab: Path) -> None:
    for name in ("one", "two"):
        assert call("--data-dir", name, "schedule", "install", "--kind", "cron", "--yes").code == 0
    assert call("--data-dir", "one", "schedule", "remove", "--yes").code == 0
    assert crontab.read_text().count("# draftloop begin") == 1
    assert "/two/runs/schedule.log" in crontab.read_text()


def test_paths_are_made_absolute_and_settings_are_carried(call, crontab: Path, tmp_path: Path, monkeypatch) -> None:
    Path("my.yaml").write_text("retrain: {niceness: 3}\n")
    monkeypatch.setenv("DRAFTLOOP_TRAINING_EPOCHS", "3")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = call("-c", "my.yaml", "--data-dir", "d", "schedule", "show", "--kind", "launchd", "--json").json
    (text,) = found["files"].values()
    agent = plistlib.loads(text.encode())
    assert agent["ProgramArguments"][-6:] == [
        *("--data-dir", f"{tmp_path}/d", "-c", f"{tmp_path}/my.yaml"),
        *("schedule", "run"),
    ]
    assert (agent["WorkingDirectory"], agent["Nice"]) == (str(tmp_path), 3)
    assert agent["EnvironmentVariables"]["DRAFTLOOP_TRAINING_EPOCHS"] == "3"
    assert "hf_secret" not in json.dumps(found)
    assert any(warning.startswith("HF_TOKEN is a secret") for warning in found["warnings"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--every", "45"], "--every 45: cron takes minutes that divide an hour"),
        (["--every", "0"], "Invalid value for '--every'"),
        (["--at", "24:00"], "'24:00': a time of day between 00:00 and 23:59 is expected"),
        (["--at", "3:05", "--every", "5"], "--every and --at say two different things"),
    ],
)
def test_a_time_that_cannot_be_is_refused(arguments: list[str], said: str, call, crontab: Path) -> None:
    for command in (["show"], ["install", "--yes"]):
        found = call("schedule", *command, "--kind", "cron", *arguments)
        assert (found.code, found.out) == (2, "")
        assert said in found.err
    assert not crontab.exists()


def test_a_scheduler_that_is_not_there_is_an_error_of_one_line(call, crontab: Path, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for kind, tool in (("cron", "crontab"), ("launchd", "launchctl"), ("systemd", "systemctl")):
        found = call("schedule", "install", "--kind", kind, "--yes")
        assert (found.code, found.out, found.err.count("\n")) == (2, "", 1)
        assert f"no `{tool}` was found on PATH" in found.err
    assert not (tmp_path / "home").exists()


def test_a_second_scheduler_of_the_same_directory_is_pointed_out(call, crontab: Path, tmp_path: Path) -> None:
    call("schedule", "install", "--kind", "cron", "--yes")
    found = call("schedule", "install", "--kind", "systemd")
    assert "note: cron has it too: `schedule remove --kind cron`" in found.err


def test_the_hidden_run_logs_a_command_and_hands_on_its_exit_code(call, tmp_path: Path) -> None:
    assert "run" not in call("schedule", "--help").out.partition("Commands:")[2]
    found = call("schedule", "run", "--", "status", "--json")
    assert (found.code, found.out, found.err) == (0, "", "")
    log = tmp_path / "data/runs/schedule.log"
    header, *output, footer = log.read_text().splitlines()
    assert f"-X faulthandler -m draftloop --data-dir {tmp_path}/data status --json" in header.replace("'", "")
    assert json.loads("\n".join(output))["status"] == "ok"
    assert ": exit 0 after " in footer
    assert call("schedule", "run", "--", "adapters", "promote", "v0001").code == 2
    ended = call("schedule", "run", "--json", "--", "nothing").json
    assert (ended["exit_code"], ended["log"]) == (2, str(log))


def test_what_is_run_by_itself_is_retrain(call, tmp_path: Path) -> None:
    Path("configs").mkdir()
    Path("configs/config.yaml").write_text("mistake: 1\n")  # so that no model is loaded
    found = call("schedule", "run", "--json")
    assert found.json["command"][-3:] == ["--data-dir", str(tmp_path / "data"), "retrain"]
    assert "/data retrain\n" in (tmp_path / "data/runs/schedule.log").read_text()
    assert found.code == 2


def test_an_idle_run_is_a_few_lines_of_the_log(call, tmp_path: Path) -> None:
    assert call("schedule", "run").code == 10
    lines = (tmp_path / "data/runs/schedule.log").read_text().splitlines()
    assert len(lines) <= 7, lines
    assert lines[-4].startswith("outcome   nothing")
    assert ": exit 10 after " in lines[-1]


def test_an_uninstalled_checkout_is_scheduled_and_runs_as_cron_runs_it(root: Path, tmp_path: Path) -> None:
    """In an environment that has our dependencies and no draftloop, really through sh."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    Path(purelib, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    absent = subprocess.run([python, "-c", "import draftloop"], capture_output=True, text=True)
    assert "No module named 'draftloop'" in absent.stderr  # or the rest would prove nothing

    data_dir = str(tmp_path / "data")
    shown = subprocess.run(
        [python, "-m", "src.main", "--data-dir", data_dir, "schedule", "show", "--kind", "cron", "--json"],
        cwd=root,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    line = json.loads(shown.stdout)["lines"][1]
    assert f"{python} -P {root / 'src/main.py'} --data-dir {data_dir} schedule run" in line
    (tmp_path / "data/runs").mkdir(parents=True)
    command = line.split(" ", 5)[5] + " -- status --json"
    subprocess.run(["/bin/sh", "-c", command], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True)
    header, *output, _footer = (tmp_path / "data/runs/schedule.log").read_text().splitlines()
    assert f"{root / 'src/main.py'} --data-dir" in header
    assert json.loads("\n".join(output))["failures"] == 0
