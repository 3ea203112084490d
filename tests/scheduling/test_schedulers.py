"""Which scheduler is taken, what is known of what it has, and that only what starts is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand_ins import write_tool

from draftloop.errors import ScheduleError
from draftloop.scheduling.job import Daily
from draftloop.scheduling.schedulers import (
    KINDS,
    ScheduleState,
    check_start,
    install_job,
    kinds_in_place,
    schedule_state,
    scheduler,
    usual_kind,
)

from .conftest import MakeJob


def test_each_machine_gets_the_scheduler_that_it_has(tools: Path, tmp_path: Path) -> None:
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert usual_kind("darwin", runtime) == "launchd"
    assert usual_kind("linux", runtime) == "cron"
    (tmp_path / "systemd").mkdir()
    assert usual_kind("linux", runtime) == "systemd"
    assert usual_kind("linux", {}, uid=2**31) == "cron"  # nobody's /run/user
    assert usual_kind("freebsd14", runtime) == "cron"


def test_a_user_manager_without_systemctl_is_of_no_use(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "systemd").mkdir()
    write_tool(tmp_path, "crontab", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert usual_kind("linux", {"XDG_RUNTIME_DIR": str(tmp_path)}) == "cron"


def test_cron_is_taken_only_where_there_is_a_crontab(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ScheduleError, match="no `crontab` on PATH, and no systemd runs for you"):
        usual_kind("linux", {"XDG_RUNTIME_DIR": str(tmp_path)})
    with pytest.raises(ScheduleError, match=r"no `crontab` on PATH\. Install cron"):
        usual_kind("freebsd14", {})
    assert usual_kind("darwin", {}) == "launchd"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_place_is_compared_with_what_would_be(kind: str, make_job: MakeJob, tools: Path) -> None:
    job, place = make_job(), scheduler(kind)
    assert place.kind == kind
    assert schedule_state(place, job) == ScheduleState(installed=False, current=False, stray=False)
    place.install(job)
    assert schedule_state(place, job) == ScheduleState(
        installed=True, current=True, stray=False, rhythm="every 60 minutes"
    )
    other = ScheduleState(True, False, False, "every 60 minutes", {"rhythm": "every 60 minutes"})
    assert schedule_state(place, make_job(when=Daily(3, 5))) == other
    assert kinds_in_place(job.id) == [kind]
    place.remove(job.id)
    assert kinds_in_place(job.id) == []


def test_files_that_no_manager_knows_are_strays(make_job: MakeJob, tools: Path) -> None:
    job, place = make_job(), scheduler("systemd")
    place.install(job)
    for state in tools.glob("*.enabled"):
        state.unlink()
    assert schedule_state(place, job) == ScheduleState(
        installed=False, current=False, stray=True, rhythm="every 60 minutes"
    )


def test_looking_needs_no_cron(make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert schedule_state(scheduler("cron"), make_job()) == ScheduleState(installed=False, current=False, stray=False)


def test_installing_makes_a_private_directory_for_the_log(make_job: MakeJob, tools: Path) -> None:
    job = make_job()
    install_job(scheduler("cron"), job)
    assert job.log.parent.stat().st_mode & 0o777 == 0o700
    assert schedule_state(scheduler("cron"), job).installed


def test_what_does_not_start_with_its_few_variables_is_not_installed(make_job: MakeJob, tools: Path) -> None:
    job = make_job(environment={"PATH": "/usr/bin:/bin", "DRAFTLOOP_TRAINING_EPOCHS": "3"}, entry=("-m", "drafloop"))
    with pytest.raises(
        ScheduleError, match=r"\(PATH, DRAFTLOOP_TRAINING_EPOCHS\): .*No module named drafloop\. Nothing"
    ):
        install_job(scheduler("cron"), job)
    assert not (tools / "crontab").exists()
    assert not job.log.parent.exists()


def test_what_starts_passes(make_job: MakeJob) -> None:
    check_start(make_job())
