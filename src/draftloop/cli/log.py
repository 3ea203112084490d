"""`log compact` brings the log within its bound, and `log rm` removes records from it. Loads no model."""

from __future__ import annotations

import re
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING

import click

from ..errors import LockedError, NothingToDo, UsageError
from .app import App, note, print_json
from .options import config_options, json_option
from .output import Doing

if TYPE_CHECKING:
    from ..data.removal import RecordChoice
    from ..retraining.log_bound import LogCompaction
    from ..retraining.log_removal import LogRemoval


@click.group()
def log_group() -> None:
    """Keep the log small, or remove records from it."""


@log_group.command("compact", cls=Doing)
@config_options("data", "max_log_mb")
@click.option("--dry-run", is_flag=True, help="Say what would be dropped; drop nothing.")
@json_option
@click.pass_obj
def compact_command(app: App, dry_run: bool, as_json: bool) -> None:
    """Drop the oldest records that nothing needs.

    Until the log is below data.max_log_mb, with room for a fifth more. Unused failures, open held-out epochs,
    candidates, what drift and looks compare with, and the newest held-out generations stay. So does the split of every
    prompt. Others may write meanwhile.
    """
    from ..retraining.log_bound import compact
    from .tables import print_text

    made = compact(app.data, app.config, dry_run=dry_run)
    if made.why_not and made.done.after == made.done.before:
        raise NothingToDo(made.why_not)
    if as_json:
        print_json({"status": "ok", "dry_run": dry_run, **made.to_json()})
    else:
        print_text(_said(made, dry_run))
        for line in _notes(made):
            note(line)


def _said(made: LogCompaction, dry_run: bool) -> str:
    from ..retraining.log_bound import megabytes

    done = made.done
    before, after, bound = (megabytes(size) for size in (done.before.total, done.after.total, made.bound))
    what = f"{'would drop' if dry_run else 'dropped'} {done.dropped:,} of {done.kept + done.dropped:,} records"
    return f"{what}: {after} instead of {before}, with a bound of {bound}"


def _notes(made: LogCompaction) -> list[str]:
    done = made.done
    notes = [made.why_not] if made.why_not else []
    if done.damaged_lines:
        notes.append(f"damaged lines, moved to failures.jsonl.broken: {done.damaged_lines}")
    if done.lost_blobs:
        notes.append(f"teacher probabilities that were damaged or gone: of {done.lost_blobs} records")
    return notes


@log_group.command("rm", cls=Doing)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--source", help="Records of this source.")
@click.option("--before", metavar="DATE", help="Records of before: 2026-11-30, or 2026-11-30T18:00; local time.")
@click.option("--match", metavar="REGEX", help="Records whose prompt's text this is found in.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask; needed where there is no terminal.")
@json_option
@click.pass_obj
def remove_command(
    app: App,
    ids: tuple[str, ...],
    source: str | None,
    before: str | None,
    match: str | None,
    dry_run: bool,
    is_sure: bool,
    as_json: bool,
) -> None:
    """Remove records for good.

    From the log, the replay buffer and the target's probabilities. Several conditions must all hold. Trainings that
    were cut off and could go on with them are given up. Versions that were trained on them are named: they do not
    forget. Others may write meanwhile; what they log then stays.
    """
    from ..retraining.log_removal import plan_removal, remove_from_log
    from .tables import print_text

    choice = _choice(ids, source, before, match)
    if not (dry_run or is_sure or (sys.stdin is not None and sys.stdin.isatty())):
        raise UsageError("found no terminal to ask on; --yes removes without asking, --dry-run shows what would go")
    if dry_run or not is_sure:
        planned = plan_removal(app.data, choice)
        if dry_run and as_json:
            print_json({"status": "ok", "dry_run": True, **planned.to_json()})
            return
        if dry_run:
            print_text(_removed(planned, "would remove"))
        else:
            note(_removed(planned, "this removes"))
        for line in _consequences(planned):
            note(line)
        if dry_run:
            return
        if not click.confirm("Remove them for good?", err=True):
            raise NothingToDo("nothing was removed")
    try:
        made = remove_from_log(app.data, choice)
    except LockedError as error:
        raise _told_of_server(app, error) from None
    if as_json:
        print_json({"status": "ok", "dry_run": False, **made.to_json()})
        return
    print_text(_removed(made, "removed"))
    for line in _consequences(made) if is_sure else ():
        note(line)
    if app.data.log.path.with_name(f"{app.data.log.path.name}.broken").exists():
        note(f"{app.data.log.path}.broken holds damaged lines, perhaps of these records too: delete it if you need not")


def _choice(ids: tuple[str, ...], source: str | None, before: str | None, match: str | None) -> RecordChoice:
    """What the options choose. Raises UsageError: nothing, or something that cannot be read."""
    from ..data.removal import RecordChoice

    if not ids and source is None and before is None and match is None:
        raise UsageError("found nothing that says which records; expected ids, --source, --before or --match")
    odd = [record_id for record_id in ids if not re.fullmatch(r"[0-9a-f]{32}", record_id)]
    if odd:
        raise UsageError(f"{odd[0]!r} is no id of a record; expected 32 hex digits, `id` in failures.jsonl")
    try:
        moment = None if before is None else datetime.fromisoformat(before).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"--before {before}: expected a date such as 2026-11-30, or 2026-11-30T18:00") from None
    try:
        pattern = None if match is None else re.compile(match)
    except re.error as error:
        raise UsageError(f"--match {match!r} is no regular expression: {error}") from None
    return RecordChoice(frozenset(ids), source, moment, pattern)


def _told_of_server(app: App, error: LockedError) -> LockedError:
    """What to do where a server's own training is in the way: one that waits for idle time would be waited for long."""
    from ..retraining.running import running

    at_work = running(app.data, time.time())
    if at_work is None or at_work.how is None:
        return error
    return LockedError(f"{at_work}. Stop the server, which keeps a checkpoint of its training, and remove them then")


def _removed(made: LogRemoval, what: str) -> str:
    done = made.done
    by_source = ", ".join(f"{source} {count:,}" for source, count in sorted(done.sources.items()))
    named = f" ({by_source})" if by_source else ""
    of_log = f"{done.removed:,} of {done.kept + done.removed:,} records of the log{named}"
    return f"{what} {of_log} and {done.replayed:,} of the replay buffer"


def _consequences(made: LogRemoval) -> list[str]:
    lines = list(made.epochs)
    if made.runs:
        lines.append(f"given up, because they could go on with some of them: {', '.join(made.runs)}")
    lines += [version.sentence for version in made.versions]
    return [*lines, made.remedy] if made.remedy else lines
