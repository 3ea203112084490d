"""`status`: what has piled up, what the next `retrain` would do, and whether acceptance drifts; loads no model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..whereabouts import in_rows, places
from .app import App, json_option, model_options, note, print_json

if TYPE_CHECKING:
    from ..retraining.facts import Facts
    from ..retraining.plan import NextAction
    from ..retraining.running import Running


@click.command()
@model_options
@json_option
@click.pass_obj
def status_command(app: App, as_json: bool) -> None:
    """Failures new and used, splits, sources, adapters, drift, and what is next. Loads no model."""
    from ..retraining.facts import read_facts
    from ..retraining.plan import next_action
    from ..retraining.running import running

    now = time.time()
    at_work = running(app.data, now)
    facts = read_facts(app.data, app.config, now)
    step = next_action(facts, app.config) if at_work is None else while_running(at_work)
    if as_json:
        print_json({"status": "ok", **places(app.resolved, app.data_dir), **_values(app, facts, step, at_work)})
    else:
        _print(app, facts, step, at_work)


def while_running(at_work: Running) -> NextAction:
    """What another `retrain` would do now: a run that is at work was not cut off, and its lock is taken."""
    from ..retraining.plan import NextAction

    return NextAction("nothing", f"another one is at work: {at_work}")


def _values(app: App, facts: Facts, step: NextAction, at_work: Running | None) -> dict[str, Any]:
    from ..retraining.running import unfinished
    from ..status import damaged_files

    found, data = facts.overview, app.data
    last = next(reversed(data.audit.entries()), None)
    return {
        "generations": found.generations,
        "failures": found.failures,
        "failures_new": found.failures_new,
        "failures_used": found.failures_used,
        "failures_held_out": found.failures_held_out,
        "failures_near_two_splits": found.failures_near_two_splits,
        "near_two_splits": found.near_two_splits,
        "other_pairs": found.other_pairs,
        "min_failure_cases": app.config.training.min_failure_cases,
        "heldout_prompts": len(found.heldout_prompts),
        "splits": dict(found.splits),
        "sources": dict(found.sources),
        "adapters": data.registry.versions(),
        "champion": facts.pointer.champion,
        "previous": facts.pointer.previous,
        "candidate": found.candidate,
        "last_retrain": {name: last[name] for name in ("when", "outcome", "why")} if last else None,
        "next": asdict(step),
        "running": asdict(at_work) if at_work else None,
        "unfinished": [asdict(run) for run in unfinished(data, at_work)],
        "drift": [{**asdict(one), "alarm": one.alarm} for one in facts.watches],
        "generations_of_champion": {"unseen": facts.watched[0], "all": facts.watched[1]},
        "chat_template_changed": facts.template,
        "log": str(data.log.path),
        "log_bytes": data.log.path.stat().st_size if data.log.path.exists() else 0,
        "damage": [*found.damage, *damaged_files(data, but_of=facts.pointer.champion)],
    }


def _print(app: App, facts: Facts, step: NextAction, at_work: Running | None) -> None:
    from ..models.hub import is_local
    from .tables import print_pairs

    values, found = _values(app, facts, step, at_work), facts.overview
    counts = {
        "new": values["failures_new"],
        "judged": values["failures_used"],
        "kept for validation and benchmark": values["failures_held_out"],
        **({"used in no split": found.failures_near_two_splits} if found.failures_near_two_splits else {}),
    }
    splits, sources = (
        ", ".join(f"{n} {name}" for name, n in values[key].items()) or "none" for key in ("splits", "sources")
    )
    print_pairs(
        {
            **in_rows(app.resolved, app.data_dir),
            "generations": values["generations"],
            "failures": f"{values['failures']} ({', '.join(f'{n} {what}' for what, n in counts.items())})",
            **({"other targets": f"{values['other_pairs']} of the generations"} if values["other_pairs"] else {}),
            "splits": splits,
            **({"near two splits": _near(found.near_two_splits)} if found.near_two_splits else {}),
            "sources": sources,
            "adapters": ", ".join(values["adapters"]) or "none",
            "champion": values["champion"] or "none: the bare draft is in use",
            "previous": values["previous"] or "none",
            **({"candidate": f"{values['candidate']}, without a verdict"} if values["candidate"] else {}),
            **({"last retrain": _ended(values["last_retrain"])} if values["last_retrain"] else {}),
            **({"watched for drift": _watched(facts)} if facts.watched[1] else {}),
            **({"at work": str(at_work)} if at_work else {}),
            **({"unfinished": _unfinished(values["unfinished"])} if values["unfinished"] else {}),
            "next retrain": "nothing, while that is at work" if at_work else f"{step.action} ({step.why})",
            "log": f"{values['log']} ({values['log_bytes']:,} bytes)",
        }
    )
    for watch in facts.alarms:
        note(
            f"drift: acceptance of {watch.source} fell from {watch.reference:.3f} to {watch.recent:.3f} per position "
            f"({watch.kind}, after {watch.generations} generations)"
        )
    if facts.template:
        note(facts.template)
    for damage in values["damage"]:
        note(damage if "permission denied: " in damage else f"damaged: {damage}")
    for name, model in (("target", app.config.models.target), ("draft", app.config.models.draft)):
        if not is_local(model):
            note(f"{name} {model} is not on this machine, so what is counted is of any; mistyped, or not loaded yet?")
    if values["generations"]:
        note(f"Prompts and outputs lie under {app.data.root} in plain text, for your eyes alone.")


def _watched(facts: Facts) -> str:
    """How few generations drift rests on: the others flatter the draft that was trained on their prompts."""
    unseen, every = facts.watched
    draft = facts.pointer.champion or "the bare draft"
    return f"{unseen} of {every} generations of {draft} since the last verdict (of prompts that it was not trained on)"


def _near(count: int) -> str:
    return f"{count} of the generations, near prompts of another split and so used in neither"


def _unfinished(runs: Sequence[Mapping[str, Any]]) -> str:
    last, earlier = runs[-1], ", ".join(run["run"] for run in runs[:-1])
    also = f"; earlier ones: {earlier}" if earlier else ""
    return f"{last['run']}, stopped or cut off after step {last['step']}: `train --resume {last['run']}` goes on{also}"


def _ended(last: Mapping[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(last["when"]))
    return f"{last['outcome']}, {when}"
