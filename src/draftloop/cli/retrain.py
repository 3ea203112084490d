"""`retrain`: the one command for cron. It does what is due, says so in one line of the audit, and leaves."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import LockedError
from .app import App, json_option, model_options, note, on_error, print_json
from .output import Doing

if TYPE_CHECKING:
    from ..config import Models
    from ..models.pair import Pair
    from ..retraining.work import Load, Outcome

_STATUS = {0: "ok", 10: "nothing_to_do", 11: "refused", 12: "inconclusive", 13: "locked"}


@click.command(cls=Doing)
@click.option("--dry-run", is_flag=True, help="Say what would be done and why; change nothing.")
@click.option("--force", is_flag=True, help="Train whatever the count, the interval or a waiting candidate says.")
@model_options
@json_option
@click.pass_obj
def retrain_command(app: App, dry_run: bool, force: bool, as_json: bool) -> int:
    """Train on what has piled up, prove that it helps on held-out prompts, promote it or discard it.

    Made for cron: idempotent, one at a time, at low priority, and safe to be killed. Exits with 0 (promoted, or rolled
    back), 10 (nothing to do), 11 (the gate refused), 12 (inconclusive), 13 (another one is running).
    """
    on_error(dry_run=dry_run)
    if dry_run:
        return _say_what_would_be_done(app, force, as_json)
    from ..retraining.run import give_way, retrain

    give_way(app.config.retrain.niceness)
    from .progress import Steps

    with Steps() as steps:
        on_step, load = partial(steps.at, "training"), _loader(app)
        found = retrain(app.data, app.config, force=force, load=load, say=note, on_step=on_step, on_work=steps.at)
    app.say_where()
    _print(found, as_json)
    return found.exit_code


def _loader(app: App) -> Load:
    """As usual, and says which models these are."""
    from ..retraining.work import loader

    usual = loader(app.config, app.data.names)

    def load(models: Models, adapter: Path | None, name: str | None) -> Pair:
        pair = usual(models, adapter, name)
        app.say_where()
        return pair

    return load


def _say_what_would_be_done(app: App, force: bool, as_json: bool) -> int:
    import time

    from ..retraining.facts import read_facts
    from ..retraining.plan import next_action
    from ..retraining.running import running
    from .status import while_running
    from .tables import print_text

    now = time.time()
    at_work = running(app.data, now)
    facts = read_facts(app.data, app.config, now)
    step = next_action(facts, app.config, force=force) if at_work is None else while_running(at_work)
    app.say_where()
    code = {"nothing": 10, "wait": 12}.get(step.action, 0) if at_work is None else LockedError.exit_code
    if as_json:
        drift = [{**asdict(found), "alarm": found.alarm} for found in facts.watches]
        failures = facts.overview.failures_new
        values: dict[str, Any] = {"dry_run": True, **asdict(step), "failures_new": failures, "drift": drift}
        values["running"] = asdict(at_work) if at_work else None
        print_json({"status": _STATUS[code], **values})
    else:
        prompts, least = len(facts.overview.heldout_prompts), app.config.gate.min_heldout_prompts
        words = _WORDS[step.action]
        if step.action == "train" and prompts < least:
            words = f"train what then waits for the gate, with {prompts} of {least} held-out prompts"
        print_text(f"would {words}: {step.why}")
    return code


_WORDS = {
    "nothing": "do nothing",
    "finish": "finish a promotion",
    "check": "hold the champion against the draft before it, and roll back if that is better",
    "resume": "go on with a training",
    "gate": "gate a candidate",
    "wait": "wait",
    "train": "train, then gate what comes of it",
}


def _print(found: Outcome, as_json: bool) -> None:
    if as_json:
        print_json({"status": _STATUS[found.exit_code], "dry_run": False, **asdict(found)})
        return
    from .tables import print_pairs

    said = {"outcome": found.outcome, "why": found.why}
    said |= {"version": found.version} if found.version else {}
    said |= {"weights deleted of": ", ".join(found.pruned)} if found.pruned else {}
    print_pairs({**said, "champion": found.champion or "none: the bare draft is in use"})
