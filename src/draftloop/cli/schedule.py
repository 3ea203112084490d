"""`schedule`: starts `retrain` at regular times, by the scheduler of this machine."""

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
from .app import App, note, print_json
from .options import Command, json_option
from .output import Doing

if TYPE_CHECKING:
    from ..scheduling.job import Daily, Every, ScheduledJob
    from ..scheduling.scheduler import Scheduler

_DEFAULT_MINUTES = 60


@click.group()
def schedule_group() -> None:
    """Retrain at regular times: cron, launchd, systemd."""


def _time_of_day(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", value, re.ASCII)
    if match is None:
        raise click.BadParameter(f"{value!r}: a time of day between 00:00 and 23:59 is expected")
    return int(match[1]), int(match[2])


def _kind_option(help_text: str) -> Callable[[Command], Command]:
    return click.option("--kind", type=click.Choice(["cron", "launchd", "systemd"]), help=help_text)


def _job_options(command: Command) -> Command:
    for option in (
        click.option("--at", callback=_time_of_day, metavar="HH:MM", help="Once a day at this local time instead."),
        click.option(
            "--every",
            type=click.IntRange(1, 7 * 24 * 60),
            metavar="MINUTES",
            help=f"Minutes between two runs.  [default: as installed now, else {_DEFAULT_MINUTES}]",
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
def show_schedule(app: App, /, as_json: bool, **asked: Any) -> None:
    """Show the schedule, and how it differs from the installed one.

    Prints what `install` would put in place. Changes nothing.
    """
    _print(app, *_scheduler_and_job(app, **asked), as_json)


@schedule_group.command("install", cls=Doing)
@_job_options
@_yes_option
@json_option
@click.pass_obj
def install_schedule(app: App, /, yes: bool, as_json: bool, **asked: Any) -> None:
    """Start `retrain` at regular times.

    It runs with this configuration and this data directory. Run `install` again to bring the schedule up to date
    (another Python, another directory): the rhythm stays, unless --every or --at gives another one.
    """
    from ..scheduling.schedulers import install_job, kinds_in_place

    scheduler, job = _scheduler_and_job(app, **asked)
    if yes:
        install_job(scheduler, job)
    _print(app, scheduler, job, as_json, changed=yes)
    for warning in _warnings(scheduler):
        note(f"note: {warning}")
    others = [kind for kind in kinds_in_place(job.id) if kind != scheduler.kind]
    if others:
        note(f"note: {' and '.join(others)} has it too: `schedule remove --kind {others[0]}`")
    note(f"installed: {job.when}" if yes else "nothing was installed; add --yes")


@schedule_group.command("remove", cls=Doing)
@_kind_option("Scheduler.  [default: every one that has it]")
@_yes_option
@json_option
@click.pass_obj
def remove_schedule(app: App, kind: str | None, yes: bool, as_json: bool) -> None:
    """Remove the schedule of this data directory.

    What was trained stays.
    """
    from ..scheduling.job import identity_of
    from ..scheduling.schedulers import kinds_in_place, scheduler

    identity = identity_of(app.data_dir)
    kinds = [name for name in kinds_in_place(identity) if kind in (None, name)]
    if not kinds:
        raise NothingToDo(f"nothing is scheduled for {app.data_dir.absolute()}" + (f" by {kind}" if kind else ""))
    installed = {name: scheduler(name).installed(identity) for name in kinds}
    for name in kinds if yes else ():
        scheduler(name).remove(identity)
    if as_json:
        print_json({"status": "ok", "id": identity, "kinds": kinds, "found": installed, "removed": yes})
    else:
        for units in installed.values():
            _print_units(units)
    note(f"removed from {' and '.join(kinds)}" if yes else "nothing was removed; add --yes")


@schedule_group.command("run", hidden=True, cls=Doing)
@click.argument("arguments", nargs=-1)
@json_option
@click.pass_obj
def run_scheduled(app: App, arguments: tuple[str, ...], as_json: bool) -> int:
    """Run `retrain`, or the ARGUMENTS after --, as the scheduler does: logged in runs/schedule.log."""
    from ..scheduling.job import RETRAIN, draftloop_command, entry_point, interpreter, log_of
    from ..scheduling.run import run_logged

    python, data_dir = interpreter(), app.data_dir.absolute()
    entry = ("-X", "faulthandler", *entry_point(python))  # a crash in C says where it was
    command = draftloop_command(python, entry, data_dir, _absolute(app.config_file), arguments or RETRAIN)
    code = run_logged(command, log_of(data_dir))
    if as_json:
        print_json({"status": "ok", "log": str(log_of(data_dir)), "command": command, "exit_code": code})
    return code


def _scheduler_and_job(
    app: App, kind: str | None, every: int | None, at: tuple[int, int] | None
) -> tuple[Scheduler, ScheduledJob]:
    """The scheduler that is asked for or usual here, and the job with the rhythm that is asked for, else installed."""
    from ..scheduling.job import Daily, Every, ScheduledJob, carried, entry_point, identity_of, interpreter
    from ..scheduling.scheduler import RHYTHM
    from ..scheduling.schedulers import scheduler, usual_kind

    place = scheduler(kind or usual_kind())
    if every is not None and at is not None:
        raise click.UsageError("--every and --at say two different things; give one of them")
    when: Daily | Every | None = Daily(*at) if at is not None else Every(every) if every is not None else None
    if when is None and (installed := place.installed(identity_of(app.data_dir))):
        unit = place.read(installed)
        when = unit.when
        if when is None:
            note(
                f"note: the installed rhythm ({unit.parts[RHYTHM]}) is none that --every or --at writes; "
                f"{Every(_DEFAULT_MINUTES)} is taken"
            )
    python = interpreter()
    return place, ScheduledJob(
        python=python,
        entry=entry_point(python),
        directory=Path.cwd(),
        data_dir=app.data_dir.absolute(),
        config_file=_absolute(app.config_file),
        when=when or Every(_DEFAULT_MINUTES),
        environment=carried(os.environ, python),
        niceness=app.config.retrain.niceness,
    )


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def _warnings(scheduler: Scheduler) -> list[str]:
    from ..scheduling.job import SECRET

    warnings = scheduler.warnings()
    if os.environ.get(SECRET):
        warnings.append(f"{SECRET} is a secret and goes into no unit; `hf auth login` keeps it where the job finds it")
    return warnings


def _print(app: App, scheduler: Scheduler, job: ScheduledJob, as_json: bool, **more: Any) -> None:
    """The job, and how what is installed compares with it."""
    from ..scheduling.schedulers import schedule_state
    from .tables import print_pairs

    state, units = schedule_state(scheduler, job), scheduler.render(job)
    if as_json:
        lines = "".join(units.values()).splitlines()
        print_json(
            {
                "status": "ok",
                **places(app.resolved, app.data_dir),
                "kind": scheduler.kind,
                "id": job.id,
                "when": str(job.when),
                "command": job.command,
                "log": str(job.log),
                "files": {} if scheduler.kind == "cron" else units,
                "lines": lines if scheduler.kind == "cron" else [],
                "installed": state.installed,
                "installed_when": state.rhythm,
                "current": state.current,
                "differs": state.differs,
                "warnings": _warnings(scheduler),
                **more,
            }
        )
        return
    installed = "yes" if state.installed else "no"
    if state.stray:
        installed = f"no: files of it lie there, but {scheduler.kind} does not run them"
    elif state.installed and not state.current:
        parts = [f"no {name}" if had is None else f"another {name} ({had})" for name, had in state.differs.items()]
        how = "`schedule install --yes` with the same options changes it"
        installed = f"yes, but with {', '.join(parts) or 'other details'}: {how}"
    print_pairs(
        {
            "scheduler": scheduler.kind,
            "id": job.id,
            "when": str(job.when),
            **in_rows(app.resolved, app.data_dir),
            "command": shlex.join(job.command),
            "log": str(job.log),
            "installed": installed,
        }
    )
    _print_units(units)


def _print_units(units: dict[str, str]) -> None:
    for place, text in units.items():
        click.echo(f"\n# {place}\n{text}", nl=False)
