"""`log compact`: brings the log within its bound. Loads no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..errors import NothingToDo
from .app import App, note, print_json
from .options import config_options, json_option
from .output import Doing

if TYPE_CHECKING:
    from ..retraining.log_bound import LogCompaction


@click.group()
def log_group() -> None:
    """Keep the log small."""


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
