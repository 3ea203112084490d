"""What is read from a unit is what was written into it; what someone edited is never taken for something else."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftloop.scheduling.cron import cron_block, read_cron
from draftloop.scheduling.job import Daily, Every, ScheduledJob
from draftloop.scheduling.launchd import launchd_plist, read_launchd
from draftloop.scheduling.scheduler import Unit, clock_fields
from draftloop.scheduling.schedulers import differences
from draftloop.scheduling.systemd import read_systemd, systemd_units

from .conftest import MakeJob

SOME = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
names = st.text(alphabet="ab %'\"\\$`;&#*~!-=>\u00a0é漢🙂", min_size=1, max_size=24)
rhythms = st.integers(1, 7 * 24 * 60).map(Every) | st.builds(Daily, st.integers(0, 23), st.integers(0, 59))


def from_cron(job: ScheduledJob) -> Unit:
    return read_cron(cron_block(job))


def from_launchd(job: ScheduledJob) -> Unit:
    return read_launchd(launchd_plist(job))


def from_systemd(job: ScheduledJob) -> Unit:
    return read_systemd("".join(systemd_units(job).values()))


@SOME
@given(when=rhythms)
def test_the_rhythm_comes_back_from_every_kind(when: Every | Daily, make_job: MakeJob) -> None:
    """24 hours by the clock and daily at 0:00 are one crontab line."""
    job, by_clock = make_job(when=when), Daily(0, 0) if when == Every(1440) else when
    assert from_launchd(job).when == when
    assert from_systemd(job).when == by_clock
    if clock_fields(when):
        assert from_cron(job).when == by_clock
    assert from_systemd(job).parts["rhythm"] == str(by_clock)


def test_24_hours_and_midnight_are_one_unit_wherever_the_clock_tells_them(make_job: MakeJob) -> None:
    both = [make_job(when=when) for when in (Every(1440), Daily(0, 0))]
    assert len({cron_block(job) for job in both}) == 1
    assert len({"".join(systemd_units(job).values()) for job in both}) == 1
    assert len({launchd_plist(job) for job in both}) == 2


@SOME
@given(name=names)
def test_every_part_comes_back_with_every_character(name: str, make_job: MakeJob) -> None:
    directory = Path("/x", name)
    variables = {"HF_HOME": name, "LANG": f"cd && exec {name};", "PATH": "/bin"}
    job = make_job(directory=directory, config_file=directory / "c.yaml", environment=variables)
    common = {"rhythm": "every 60 minutes", "command": shlex.join(job.command), **variables}
    assert from_cron(job).parts == {**common, "directory": str(directory), "log": str(job.log)}
    assert from_launchd(job).parts == {**common, "directory": str(directory), "log": str(job.log), "niceness": "10"}
    assert from_systemd(job).parts == {**common, "directory": f"{directory}/", "niceness": "10"}


def test_a_job_without_variables_is_read_too(make_job: MakeJob) -> None:
    job = make_job(environment={})
    assert from_cron(job).parts["command"] == shlex.join(job.command)
    assert "" not in {*from_cron(job).parts, *from_launchd(job).parts, *from_systemd(job).parts}


@pytest.mark.parametrize("read", [from_cron, from_launchd, from_systemd], ids=["cron", "launchd", "systemd"])
def test_differences_are_what_the_one_in_place_has(read, make_job: MakeJob) -> None:
    old = make_job(python=Path("/old/python"), environment={"PATH": "/old", "LANG": "C"}, when=Daily(3, 10))
    new = make_job(environment={"PATH": "/new", "HF_HOME": "/models"}, when=Daily(3, 10))
    assert differences(read(new), read(new)) == {}
    assert differences(read(old), read(new)) == {
        "PATH": "/old",
        "LANG": "C",
        "HF_HOME": None,
        "command": shlex.join(old.command),
    }


@pytest.mark.parametrize(
    ("fields", "rhythm"),
    [("15 * * * *", "15 * * * *"), ("0 3 * * 1", "0 3 * * 1"), ("@daily", None), ("0 0,12 * * *", "0 0,12 * * *")],
)
def test_a_crontab_line_of_another_rhythm_is_shown_as_it_stands(fields: str, rhythm, make_job: MakeJob) -> None:
    unit = read_cron(cron_block(make_job()).replace("\n0 * * * *", f"\n{fields}"))
    assert unit.when is None
    assert rhythm in (None, unit.parts["rhythm"])


@pytest.mark.parametrize("line", ["", "0 * * * *", "0 * * * * it's mine", "0 * * * * umask 077; exec >>x 2>&1; cd"])
def test_an_edited_crontab_line_is_no_error(line: str) -> None:
    assert "command" in read_cron(f"# draftloop begin 0000abcd\n{line}\n# draftloop end 0000abcd\n").parts


@pytest.mark.parametrize(
    ("old", "new", "rhythm"),
    [
        ("<integer>3600</integer>", "<integer>90</integer>", "90"),
        ("<key>StartInterval</key>", "<key>StartIntervall</key>", "None"),
        ("</plist>", "", "unreadable"),
        ("<key>ProgramArguments</key>", "<key>Program</key>", "unreadable"),
    ],
)
def test_an_edited_property_list_has_no_rhythm(old: str, new: str, rhythm: str, make_job: MakeJob) -> None:
    unit = read_launchd(launchd_plist(make_job()).replace(old, new))
    assert (unit.when, unit.parts["rhythm"]) == (None, rhythm)


def test_a_day_of_the_week_in_a_property_list_is_no_daily_rhythm(make_job: MakeJob) -> None:
    text = launchd_plist(make_job(when=Daily(3, 10)))
    weekly = text.replace("<key>Hour</key>", "<key>Weekday</key><integer>1</integer><key>Hour</key>")
    assert read_launchd(text).when == Daily(3, 10)
    assert read_launchd(weekly).when is None


@pytest.mark.parametrize("start", ["OnCalendar=weekly", "OnBootSec=0min\nOnUnitActiveSec=0min", ""])
def test_an_edited_timer_has_no_rhythm(start: str, make_job: MakeJob) -> None:
    text = "".join(systemd_units(make_job()).values())
    unit = read_systemd(text.replace("OnCalendar=*-*-* *:0:00", start))
    assert unit.when is None
    assert unit.parts["rhythm"] == start.replace("\n", " ")


def test_a_quote_without_its_match_in_a_service_is_no_error() -> None:
    assert read_systemd('ExecStart="x\n').parts["command"] == shlex.join(['"x'])
