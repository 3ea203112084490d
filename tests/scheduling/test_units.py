"""What each scheduler is given: its structure, and that every path comes out as it went in."""

from __future__ import annotations

import json
import os
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mortal import HANGS

from draftloop.errors import ConfigError, ScheduleError
from draftloop.scheduling.cron import cron_block, cron_line
from draftloop.scheduling.job import Daily, Every, ScheduledJob
from draftloop.scheduling.launchd import launchd_plist
from draftloop.scheduling.systemd import systemd_units

from .conftest import MakeJob

NASTY = """a b%c'd"e$f\\%g\\\\h;i`j é漢🙂\u00a0\\"""
SOME = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_SHELL = ("/bin/sh", "-c", 'exec "$0" "$@"')
names = st.text(alphabet="ab %'\"\\$`;&#*~!-=\u00a0\u2028é漢🙂", min_size=1, max_size=24)
STAND_IN = (
    f"#!{sys.executable} -ISE\nimport json, os, sys\nprint(json.dumps([sys.argv, os.getcwd(), dict(os.environ)]))\n"
)


def unescaped(line: str, *, collapsing: bool) -> str:
    r"""The command as cron's do_command.c hands it to the shell; `collapsing` crons make one \ of \\ as well."""
    out, escaped = "", False
    for character in line.split(" ", 5)[5]:
        if escaped and (character == "%" or (collapsing and character == "\\")):
            out = out[:-1]
        elif character == "%" and not escaped:
            return out  # the rest is its stdin
        out += character
        escaped = character == "\\" and not escaped
    return out


def test_the_crontab_line_has_five_fields_and_one_command(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(environment={"PATH": "/usr/bin:/bin", "LANG": "C"})
    assert cron_line(job) == (
        f"0 * * * * umask 077; exec >>{tmp_path}/data/runs/schedule.log 2>&1; "
        f"export PATH=/usr/bin:/bin LANG=C; cd {tmp_path} && "
        f"exec {sys.executable} -P -m draftloop --data-dir {tmp_path}/data schedule run"
    )


def test_the_block_says_whose_it_is(make_job: MakeJob) -> None:
    job = make_job()
    begin, line, end, rest = cron_block(job).split("\n")
    assert (begin, line, end, rest) == (
        *(f"# draftloop begin {job.id}", cron_line(job), f"# draftloop end {job.id}"),
        "",
    )


@pytest.mark.parametrize(
    ("when", "fields", "calendar"),
    [
        (Every(1), "* *", "*:*"),
        (Every(15), "*/15 *", "*:0/15"),
        (Every(60), "0 *", "*:0"),
        (Every(120), "0 */2", "0/2:0"),
        (Every(720), "0 */12", "0/12:0"),
        (Every(1440), "0 0", "0:0"),
        (Daily(3, 5), "5 3", "3:5"),
    ],
    ids=str,
)
def test_regular_times_follow_the_clock(when, fields: str, calendar: str, make_job: MakeJob) -> None:
    job = make_job(when=when)
    assert cron_line(job).startswith(f"{fields} * * * umask")
    timer = list(systemd_units(job).values())[1]
    assert f"[Timer]\nOnCalendar=*-*-* {calendar}:00\nPersistent=true\n\n[Install]\nWantedBy=timers.target\n" in timer
    if shutil.which("systemd-analyze"):
        subprocess.run(["systemd-analyze", "calendar", f"*-*-* {calendar}:00"], check=True, capture_output=True)


@pytest.mark.parametrize("minutes", [7, 45, 90, 300, 2880])
def test_other_intervals_are_refused_for_cron_and_counted_by_the_others(minutes: int, make_job: MakeJob) -> None:
    job = make_job(when=Every(minutes))
    with pytest.raises(ConfigError, match=f"--every {minutes}: cron takes .* or --kind systemd or launchd"):
        cron_line(job)
    timer = list(systemd_units(job).values())[1]
    assert f"[Timer]\nOnBootSec={minutes}min\nOnUnitActiveSec={minutes}min\n\n" in timer
    assert plistlib.loads(launchd_plist(job).encode())["StartInterval"] == 60 * minutes


def test_a_line_longer_than_cron_takes_is_refused_with_what_makes_it_long(make_job: MakeJob) -> None:
    with pytest.raises(ScheduleError, match=r"cron takes 998; PATH alone has 901\. Make that shorter"):
        cron_line(make_job(environment={"PATH": "/" + 900 * "x"}))


@SOME
@given(name=names, collapsing=st.booleans())
@example(name=r"a\\b\%c\\\%", collapsing=True)
@example(name=r"a\\b\%c\\\%", collapsing=False)
def test_the_shell_gets_from_cron_exactly_what_was_meant(name: str, collapsing: bool, make_job: MakeJob) -> None:
    """Really through `sh -c`, with cron's few variables and a program that prints what it was given."""
    directory = make_job().directory / f"x{name}x"
    job = make_job(
        python=directory / "python",
        directory=directory,
        config_file=directory / name,
        environment={"PATH": "/usr/bin:/bin", "HF_HOME": name},
    )
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.log.unlink(missing_ok=True)
    job.python.write_text(STAND_IN)
    job.python.chmod(0o755)
    command = unescaped(cron_line(job), collapsing=collapsing)
    done = run_as_cron_does(command, directory.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    argv, where, environment = json.loads(job.log.read_text())
    assert tuple(argv) == job.command
    assert Path(where) == directory
    assert (environment["HF_HOME"], environment["PATH"]) == (name, "/usr/bin:/bin")
    assert job.log.stat().st_mode & 0o777 == 0o600


def run_as_cron_does(command: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}
    return subprocess.run(
        ["/bin/sh", "-c", command], cwd=home, env=environment, capture_output=True, text=True, timeout=HANGS
    )


def test_a_percent_sign_that_is_not_escaped_would_cut_the_command_off() -> None:
    """Or the reader above would prove nothing."""
    assert unescaped("0 * * * * echo 50% of it", collapsing=False) == "echo 50"
    assert unescaped(r"0 * * * * echo 50\% of it", collapsing=False) == "echo 50% of it"
    assert unescaped(r"0 * * * * echo 'a\\b'", collapsing=True) == r"echo 'a\b'"


def test_cron_starts_draftloop_in_a_directory_with_a_space_and_a_percent_sign(
    make_job: MakeJob, tmp_path: Path
) -> None:
    directory = tmp_path / "50% of it"
    directory.mkdir()
    job = make_job(directory=directory, arguments=("schedule", "run", "--", "status", "--json"))
    job.log.parent.mkdir(parents=True)
    done = run_as_cron_does(unescaped(cron_line(job), collapsing=False), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    header, *output, footer = job.log.read_text().splitlines()
    assert header.startswith("=== 2")
    assert header.endswith("status --json")
    assert json.loads("\n".join(output))["log"] == f"{directory}/data/failures/failures.jsonl"
    assert ": exit 0 after " in footer


def test_the_agent_runs_in_the_background_and_catches_up(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job()
    log = f"{tmp_path}/data/runs/schedule.log"
    assert plistlib.loads(launchd_plist(job).encode()) == {
        "Label": f"draftloop.{job.id}",
        "ProgramArguments": list(job.command),
        "WorkingDirectory": str(tmp_path),
        "EnvironmentVariables": {"PATH": "/usr/bin:/bin"},
        "StartInterval": 3600,
        "ProcessType": "Background",
        "LowPriorityIO": True,
        "Nice": 10,
        "Umask": 0o077,
        "ExitTimeOut": 300,
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    daily = plistlib.loads(launchd_plist(make_job(when=Daily(3, 5))).encode())
    assert daily["StartCalendarInterval"] == {"Hour": 3, "Minute": 5}
    assert "StartInterval" not in daily


@SOME
@given(name=names)
def test_a_property_list_gives_back_every_character(name: str, make_job: MakeJob) -> None:
    job = make_job(directory=Path("/x", name), environment={"HF_HOME": name})
    found = plistlib.loads(launchd_plist(job).encode())
    assert tuple(found["ProgramArguments"]) == job.command
    assert (found["WorkingDirectory"], found["EnvironmentVariables"]) == (str(Path("/x", name)), {"HF_HOME": name})


@pytest.mark.skipif(shutil.which("plutil") is None, reason="plutil is macOS's")
def test_plutil_finds_no_fault_in_the_property_list(make_job: MakeJob, tmp_path: Path) -> None:
    file = tmp_path / "agent.plist"
    file.write_text(launchd_plist(make_job(directory=Path("/x", NASTY))))
    done = subprocess.run(["plutil", "-lint", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_service_gives_way_and_takes_nothing_to_do_for_no_failure(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job()
    assert list(systemd_units(job)) == [f"draftloop-{job.id}.service", f"draftloop-{job.id}.timer"]
    assert systemd_units(job)[f"draftloop-{job.id}.service"] == (
        f'[Unit]\nDescription=draftloop retrain for "{tmp_path}/data"\n\n'
        f'[Service]\nType=oneshot\nWorkingDirectory={tmp_path}/\nEnvironment="PATH=/usr/bin:/bin"\n'
        f"ExecStart={' '.join(json.dumps(word) for word in job.command)}\n"
        "SuccessExitStatus=10 11 12 13 130\nKillMode=mixed\nTimeoutStopSec=300\n"
        "Nice=10\nIOSchedulingClass=idle\nUMask=0077\n"
    )


def words_of(line: str, *, variables: bool) -> list[str]:
    """A line as systemd.syntax(7) and systemd.service(5) read it: quotes, escapes, %%, and $$ where variables count."""
    words, word, quoted, at = [], "", False, 0
    while at < len(line):
        character = line[at]
        if character == "\\" and quoted:
            at += 1
            word += line[at]
            assert line[at] in '\\"'
        elif character == '"':
            quoted = not quoted
        elif character in " " and not quoted:
            words, word = [*words, word], ""
        elif character in "%$" and (character == "%" or variables):
            at += 1
            assert line[at] == character, "a specifier or a variable"
            word += character
        else:
            word += character
        at += 1
    assert not quoted
    return [*words, word]


def setting(text: str, name: str) -> str:
    """The value of the one line `name=`; lines end at newlines alone, and a last backslash would take the next in."""
    assert not any(line.endswith("\\") for line in text.split("\n"))
    (found,) = [line.partition("=")[2] for line in text.split("\n") if line.startswith(f"{name}=")]
    assert found == found.strip()
    return found


@SOME
@given(name=names)
def test_systemd_gets_every_character_as_it_was(name: str, make_job: MakeJob) -> None:
    directory = Path("/x", name)
    job = make_job(python=directory / "python", directory=directory, environment={"HF_HOME": name})
    service, timer = systemd_units(job).values()
    assert words_of(setting(service, "ExecStart"), variables=True) == [
        *(_SHELL if set(name) & set("\"'\\$") else ()),
        *job.command,
    ]
    assert words_of(setting(service, "Environment"), variables=False) == [f"HF_HOME={name}"]
    assert setting(service, "WorkingDirectory").replace("%%", "%") == f"{directory}/"
    for text in (service, timer):
        assert setting(text, "Description").replace("%%", "%").endswith(f'for "{directory}/data"')


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is Linux's")
@pytest.mark.parametrize("when", [Every(60), Every(45), Daily(3, 5)], ids=str)
def test_systemd_itself_finds_no_fault_in_the_units(when, make_job: MakeJob, tmp_path: Path) -> None:
    python = tmp_path / "a b%c=é漢🙂\u00a0" / "python"  # which it looks for
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    nasty = {"directory": Path("/x", NASTY), "environment": {"HF_HOME": NASTY}}
    assert verified(make_job(when=when, python=python, **nasty), tmp_path) == ""
    assert verified(make_job(when=when, python=Path("/x", NASTY, "python"), **nasty), tmp_path) == ""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is Linux's")
def test_systemd_would_say_what_it_does_not_know(make_job: MakeJob, tmp_path: Path) -> None:
    """Or its silence would prove nothing."""
    broken = lambda text: text.replace("Persistent=true", "Persistnt=true")  # noqa: E731
    assert "Unknown key 'Persistnt'" in verified(make_job(), tmp_path, broken)


def verified(job: ScheduledJob, folder: Path, change=str) -> str:
    """What `systemd-analyze verify` says of the units of `job`."""
    for name, text in systemd_units(job).items():
        (folder / name).write_text(change(text))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", *(folder / name for name in systemd_units(job))],
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 or done.stderr, "refused without a word"
    return done.stderr
