"""`retrain`: the one command for cron. It does the next action, writes one line of the audit log, and exits."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import LockedError
from .app import App, note, on_error, print_json
from .options import json_option, model_options
from .output import Doing

if TYPE_CHECKING:
    from ..config import Models
    from ..models.pair import Pair

LOWEST = 19  # niceness
_STATUS = {0: "ok", 10: "nothing_to_do", 11: "refused", 12: "inconclusive", 13: "locked"}
_ACTIONS = {
    "nothing": "do nothing",
    "finish": "finish a promotion",
    "check": "compare the champion with the previous draft, and roll back if that is better",
    "resume": "resume a training",
    "gate": "gate a candidate",
    "wait": "wait",
    "train": "train, then gate the candidate",
}


@click.command(cls=Doing)
@click.option("--dry-run", is_flag=True, help="Say what would be done and why; change nothing.")
@click.option("--force", is_flag=True, help="Train whatever the count, the interval or a waiting candidate says.")
@click.option("--attached", is_flag=True, hidden=True, help="A server's own: it gives way to everything.")
@click.option("--without-target", is_flag=True, hidden=True, help="The server that started it has the target.")
@click.option("--memory-gb", type=float, hidden=True, help="That MLX may hold while it trains.")
@click.option("--watch", is_flag=True, hidden=True, help="Look at the champion, and train nothing.")
@model_options
@json_option
@click.pass_obj
def retrain_command(app: App, /, dry_run: bool, force: bool, as_json: bool, attached: bool, **attachment: Any) -> int:
    """Train, gate and promote, unattended.

    Trains on new failures, tests the candidate on held-out prompts, and promotes or refuses it. Made for cron:
    idempotent, one at a time, at low priority, and safe to kill. Exits with 0 (promoted, or rolled back), 10 (nothing
    to do), 11 (the gate refused), 12 (inconclusive), 13 (another one is running).
    """
    on_error(dry_run=dry_run)
    if dry_run:
        return _dry_run(app, force, as_json)
    if attached:
        return _beside_a_server(app, **attachment)
    from ..retraining.run import give_way, retrain
    from ..retraining.work import loader

    give_way(app.config.retrain.niceness)
    from .progress import Steps

    load_pair = loader(app.config, app.data.names)

    def load(models: Models, adapter: Path | None, name: str | None) -> Pair:
        pair = load_pair(models, adapter, name)
        app.say_where()
        return pair

    with Steps() as steps:
        on_step = partial(steps.at, "training")
        outcome = retrain(app.data, app.config, force=force, load=load, say=note, on_step=on_step, on_work=steps.at)
    app.say_where()
    if as_json:
        print_json({"status": _STATUS[outcome.exit_code], "dry_run": False, **asdict(outcome)})
        return outcome.exit_code
    from .tables import print_pairs

    rows = {"outcome": outcome.outcome, "why": outcome.why}
    rows |= {"version": outcome.version} if outcome.version else {}
    rows |= {"weights deleted of": ", ".join(outcome.pruned)} if outcome.pruned else {}
    print_pairs({**rows, "champion": outcome.champion or "none: the bare draft is in use"})
    return outcome.exit_code


def _beside_a_server(app: App, without_target: bool, memory_gb: float | None, watch: bool) -> int:
    """As the child of `serve`, which reads its stderr, and whose stdin and stdout answer what needs the target."""
    from ..evaluation.target_questions import server_of_this_process
    from ..retraining.run import Beside, give_way, retrain

    give_way(LOWEST)
    server, config = server_of_this_process(), app.config
    how = "for the server, " + ("without the target" if without_target else "with the target loaded once more")
    how += "" if memory_gb is None else f", in {memory_gb:.3g} GB"
    target = None
    if without_target:
        from ..evaluation.gate_target import LoggedTarget

        target, teacher = LoggedTarget(server), "none" if config.training.teacher == "none" else "logged"
        config = config.model_copy(update={"training": config.training.model_copy(update={"teacher": teacher})})
    from .progress import Steps

    with Steps() as steps:
        on_step = partial(steps.at, "training")
        beside = Beside(how, memory_gb, watch)
        outcome = retrain(app.data, config, say=note, on_step=on_step, on_work=steps.at, target=target, beside=beside)
    return outcome.exit_code


def _dry_run(app: App, force: bool, as_json: bool) -> int:
    from .status import read_next_action
    from .tables import print_text

    facts, action, running = read_next_action(app, force=force)
    app.say_where()
    code = {"nothing": 10, "wait": 12}.get(action.action, 0) if running is None else LockedError.exit_code
    if as_json:
        print_json(
            {
                "status": _STATUS[code],
                "dry_run": True,
                **asdict(action),
                "failures_new": facts.overview.failures_new,
                "drift": [{**asdict(check), "alarm": check.alarm} for check in facts.drift_checks],
                "running": asdict(running) if running else None,
            }
        )
        return code
    prompts, least = len(facts.overview.heldout_prompts), app.config.gate.min_heldout_prompts
    words = _ACTIONS[action.action]
    if action.action == "train" and prompts < least:
        words = f"train a candidate, which then waits for the gate ({prompts} of {least} held-out prompts)"
    print_text(f"would {words}: {action.why}")
    return code
