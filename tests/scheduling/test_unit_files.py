"""Agents and user units: written, made known, taken away; what was there before survives a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand_ins import write_tool

from draftloop.errors import ScheduleError
from draftloop.scheduling.job import Daily
from draftloop.scheduling.launchd import Launchd, launchd_plist
from draftloop.scheduling.systemd import Systemd, systemd_units

from .conftest import MakeJob


def calls(state: Path) -> list[str]:
    """What the tool was asked since the last time."""
    file = state / "calls"
    found = file.read_text().splitlines()
    file.unlink()
    return found


def test_a_timer_is_written_enabled_and_started(make_job: MakeJob, tools: Path, tmp_path: Path) -> None:
    job, systemd = make_job(), Systemd()
    assert systemd.installed(job.id) == {}
    systemd.install(job)
    folder = tmp_path / "home/.config/systemd/user"
    assert {file.name: file.read_text() for file in folder.iterdir()} == systemd_units(job)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    timer = f"draftloop-{job.id}.timer"
    assert calls(tools)[-3:] == ["--user daemon-reload", f"--user enable {timer}", f"--user restart {timer}"]
    assert systemd.installed(job.id) == systemd.render(job)
    assert systemd.is_active(job.id)


def test_a_timer_is_stopped_before_its_files_go(make_job: MakeJob, tools: Path, tmp_path: Path) -> None:
    job, systemd = make_job(), Systemd()
    systemd.install(job)
    calls(tools)
    systemd.remove(job.id)
    assert calls(tools) == [f"--user disable --now draftloop-{job.id}.timer", "--user daemon-reload"]
    assert list((tmp_path / "home/.config/systemd/user").iterdir()) == []
    assert not systemd.is_active(job.id)


def test_units_go_where_xdg_config_home_says_unless_that_is_relative(tmp_path: Path) -> None:
    def folder(configured: str) -> Path:
        return Systemd({"HOME": "/h", "XDG_CONFIG_HOME": configured}).paths("x")[0].parent

    assert folder(str(tmp_path)) == tmp_path / "systemd/user"
    assert folder("relative") == folder("") == Path("/h/.config/systemd/user")


def test_a_refused_timer_leaves_nothing_behind(make_job: MakeJob, tools: Path, tmp_path: Path) -> None:
    job = make_job()
    elsewhere = Systemd({"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "unseen")})
    with pytest.raises(ScheduleError, match=r"did not take .* does not exist\."):
        elsewhere.install(job)
    assert elsewhere.installed(job.id) == {}


def test_a_refused_change_leaves_the_files_of_before(make_job: MakeJob, tools: Path) -> None:
    job, systemd = make_job(), Systemd()
    systemd.install(job)
    write_tool(tools.parent / "bin", "systemctl", '#!/bin/sh\necho "Failed to connect to bus" >&2\nexit 1\n')
    with pytest.raises(ScheduleError, match=r"as they were before: .*Failed to connect to bus"):
        systemd.install(make_job(when=Daily(3, 5)))
    assert systemd.installed(job.id) == systemd.render(job)
    with pytest.raises(ScheduleError, match=r"did not let go of the timer: .*Failed to connect to bus"):
        systemd.remove(job.id)
    assert systemd.installed(job.id) == systemd.render(job)


@pytest.mark.parametrize(("kind", "tool"), [(Systemd, "systemctl"), (Launchd, "launchctl")])
def test_where_there_is_no_such_manager_another_kind_is_named(
    kind, tool: str, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    place = kind({"HOME": str(tmp_path / "home")})
    with pytest.raises(ScheduleError, match=rf"no `{tool}` was found on PATH .*choose --kind"):
        place.install(make_job())
    assert place.installed(make_job().id) == {}


def test_an_agent_is_written_and_loaded_and_taken_away(make_job: MakeJob, tools: Path, tmp_path: Path) -> None:
    job, launchd = make_job(), Launchd(pause=0)
    launchd.install(job)
    file = tmp_path / "home/Library/LaunchAgents" / f"draftloop.{job.id}.plist"
    assert file.read_text() == launchd_plist(job)
    assert launchd.is_active(job.id)
    assert launchd.installed(job.id) == launchd.render(job)
    launchd.remove(job.id)
    assert not file.exists()
    assert not launchd.is_active(job.id)


def test_a_changed_agent_is_unloaded_first_and_loaded_once_launchd_is_ready(make_job: MakeJob, tools: Path) -> None:
    launchd = Launchd(pause=0)
    launchd.install(make_job())
    (tools / "busy").write_text("1\n2\n")
    calls(tools)
    launchd.install(make_job(when=Daily(3, 5)))
    assert [call.split()[0] for call in calls(tools)] == ["print", "print", "bootout", "enable", *3 * ["bootstrap"]]
    assert launchd.is_active(make_job().id)


def test_an_agent_that_launchd_never_takes_is_not_left_lying(make_job: MakeJob, tools: Path) -> None:
    launchd = Launchd(pause=0)
    (tools / "busy").write_text(9 * "x\n")
    with pytest.raises(ScheduleError, match=r"launchd did not take .*5: Input/output error"):
        launchd.install(make_job())
    assert launchd.installed(make_job().id) == {}


def test_removing_an_agent_that_is_not_loaded_removes_its_file(make_job: MakeJob, tools: Path) -> None:
    job, launchd = make_job(), Launchd(pause=0)
    launchd.install(job)
    (tools / f"draftloop.{job.id}").unlink()
    launchd.remove(job.id)
    assert launchd.installed(job.id) == {}
