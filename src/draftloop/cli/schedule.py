"""`schedule`: `retrain` at regular times, by the scheduler that the machine has."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import NothingToDo
from ..whereabouts import in_rows, places
from .app import App, Command, json_option, note, print_json
from .output import Doing

if TYPE_CHECKING:
    from ..scheduling.job import Daily, Every, ScheduledJob
    from ..scheduling.schedulers import Scheduler, State

_EVERY = 60


@click.group()
def schedule_group() -> None:
    """Retrain at regular times: cron, launchd or systemd."""


def _time_of_day(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", value, re.ASCII)
    if found is None:
        raise click.BadParameter(f"{value!r}: a time of day between 00:00 and 23:59 is expected")
    return int(found[1]), int(found[2])


def _kind_option(help_text: str) -> Callable[[Command], Command]:
    return click.option("--kind", type=click.Choice(["cron", "launchd", "systemd"]), help=help_text)


def _job_options(command: Command) -> Command:
    for option in (
        click.option("--at", callback=_time_of_day, metavar="HH:MM", help="Once a day at this local time instead."),
        click.option(
            "--every",
            type=click.IntRange(1, 7 * 24 * 60),
            metavar="MINUTES",
            help=f"How often.  [default: as it is installed now, else {_EVERY}]",
        ),
        _kind_option("Scheduler.  [default: launchd on macOS, systemd where it runs for you, cron where `crontab` is]"),
    ):
        command = option(command)
    return command


def _yes_option(command: Command) -> Command:
    return click.option("--yes", is_flag=True, help="Do it; without this it is only shown.")(command)


@schedule_group.command("show")
@_job_options
@json_option
@click.pass_obj
def show_schedule(app: App, kind: str | None, every: int | None, at: tuple[int, int] | None, as_json: bool) -> None:
    """Print what `install` would put in place, and in what that differs from what is there. Changes nothing."""
    from ..scheduling.schedulers import schedule_state

    place = _scheduler(kind)
    job = _job(app, _when(app, place, every, at))
    state = schedule_state(place, job)
    if as_json:
        _print_json(app, place, job, state)
    else:
        _print_text(app, place, job, state)


@schedule_group.command("install", cls=Doing)
@_job_options
@_yes_option
@json_option
@click.pass_obj
def install_schedule(
    app: App, kind: str | None, every: int | None, at: tuple[int, int] | None, yes: bool, as_json: bool
) -> None:
    """Have `retrain` started at regular times, with this configuration and this data directory.

    Run again, it brings what is installed up to date (another Python, another directory) and keeps its rhythm, unless
    --every or --at says another one.
    """
    from ..scheduling import schedulers

    place = _scheduler(kind)
    job = _job(app, _when(app, place, every, at))
    if yes:
        schedulers.install_job(place, job)
    state = schedulers.schedule_state(place, job)
    if as_json:
        _print_json(app, place, job, state, changed=yes)
    else:
        _print_text(app, place, job, state)
    for warning in _warnings(place, job):
        note(f"note: {warning}")
    others = [kind for kind in schedulers.kinds_in_place(job.id) if kind != place.kind]
    if others:
        note(f"note: {' and '.join(others)} has it too: `schedule remove --kind {others[0]}`")
    note(f"installed: {job.when}" if yes else "nothing was installed; add --yes")


@schedule_group.command("remove", cls=Doing)
@_kind_option("Scheduler.  [default: every one that has it]")
@_yes_option
@json_option
@click.pass_obj
def remove_schedule(app: App, kind: str | None, yes: bool, as_json: bool) -> None:
    """Take the schedule of this data directory away. What was trained stays."""
    from ..scheduling.job import identity_of
    from ..scheduling.schedulers import kinds_in_place, scheduler

    identity = identity_of(app.data_dir)
    kinds = [name for name in kinds_in_place(identity) if kind in (None, name)]
    if not kinds:
        raise NothingToDo(f"nothing is scheduled for {app.data_dir.absolute()}" + (f" by {kind}" if kind else ""))
    places = {name: scheduler(name).found(identity) for name in kinds}
    for name in kinds if yes else ():
        scheduler(name).remove(identity)
    if as_json:
        print_json({"status": "ok", "id": identity, "kinds": kinds, "found": places, "removed": yes})
    else:
        for texts in places.values():
            _print_units(texts)
    note(f"removed from {' and '.join(kinds)}" if yes else "nothing was removed; add --yes")


@schedule_group.command("run", hidden=True, cls=Doing)
@click.argument("arguments", nargs=-1)
@json_option
@click.pass_obj
def run_scheduled(app: App, arguments: tuple[str, ...], as_json: bool) -> int:
    """What the scheduler starts: `retrain`, or the ARGUMENTS after --, logged in runs/schedule.log."""
    from ..scheduling.job import RETRAIN, draftloop_command, entry_point, interpreter, log_of
    from ..scheduling.run import run_logged

    python, data_dir, config_file = interpreter(), app.data_dir.absolute(), _absolute(app.config_file)
    entry = ("-X", "faulthandler", *entry_point(python))  # a crash in C says where it was
    command = draftloop_command(python, entry, data_dir, config_file, arguments or RETRAIN)
    code = run_logged(command, log_of(data_dir))
    if as_json:
        print_json({"status": "ok", "log": str(log_of(data_dir)), "command": command, "exit_code": code})
    return code


def _scheduler(kind: str | None) -> Scheduler:
    from ..scheduling.schedulers import scheduler, usual_kind

    return scheduler(kind or usual_kind())


def _job(app: App, when: Every | Daily) -> ScheduledJob:
    from ..scheduling.job import ScheduledJob, carried, entry_point, interpreter

    return ScheduledJob(
        python=interpreter(),
        entry=entry_point(interpreter()),
        directory=Path.cwd(),
        data_dir=app.data_dir.absolute(),
        config_file=_absolute(app.config_file),
        when=when,
        environment=carried(os.environ, interpreter()),
        niceness=app.config.retrain.niceness,
    )


def _when(app: App, place: Scheduler, every: int | None, at: tuple[int, int] | None) -> Every | Daily:
    """The rhythm that is asked for, else the one in place, else the default."""
    from ..scheduling.job import Daily, Every, identity_of
    from ..scheduling.readback import RHYTHM
    from ..scheduling.schedulers import unit_in_place

    if every is not None and at is not None:
        raise click.UsageError("--every and --at say two different things; give one of them")
    if at is not None:
        return Daily(*at)
    if every is not None:
        return Every(every)
    unit = unit_in_place(place, identity_of(app.data_dir))
    if unit is None or unit.when is None:
        if unit is not None:
            told = unit.parts[RHYTHM]
            note(f"note: the installed rhythm ({told}) is none that --every or --at writes; {Every(_EVERY)} is taken")
        return Every(_EVERY)
    return unit.when


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def _warnings(place: Scheduler, job: ScheduledJob) -> list[str]:
    from ..scheduling.job import SECRET

    found = place.warnings(job)
    if os.environ.get(SECRET):
        found.append(f"{SECRET} is a secret and goes into no unit; `hf auth login` keeps it where the job finds it")
    return found


def _print_json(app: App, place: Scheduler, job: ScheduledJob, state: State, **more: Any) -> None:
    texts = place.render(job)
    print_json(
        {
            "status": "ok",
            **places(app.resolved, app.data_dir),
            "kind": place.kind,
            "id": job.id,
            "when": str(job.when),
            "command": job.command,
            "log": str(job.log),
            "files": {} if place.kind == "cron" else texts,
            "lines": "".join(texts.values()).splitlines() if place.kind == "cron" else [],
            "installed": state.installed,
            "installed_when": state.rhythm,
            "current": state.current,
            "differs": state.differs,
            "warnings": _warnings(place, job),
            **more,
        }
    )


def _print_text(app: App, place: Scheduler, job: ScheduledJob, state: State) -> None:
    from .tables import print_pairs

    texts = place.render(job)
    print_pairs(
        {
            "scheduler": place.kind,
            "id": job.id,
            "when": str(job.when),
            **in_rows(app.resolved, app.data_dir),
            "command": shlex.join(job.command),
            "log": str(job.log),
            "installed": _said(state, place.kind),
        }
    )
    _print_units(texts)


def _said(state: State, kind: str) -> str:
    if state.stray:
        return f"no: files of it lie there, but {kind} does not run them"
    if not state.installed:
        return "no"
    if state.current:
        return "yes"
    parts = [f"no {name}" if told is None else f"another {name} ({told})" for name, told in state.differs.items()]
    how = "`schedule install --yes` with the same options changes it"
    return f"yes, but with {', '.join(parts) or 'other details'}: {how}"


def _print_units(texts: dict[str, str]) -> None:
    for place, text in texts.items():
        click.echo(f"\n# {place}\n{text}", nl=False)
