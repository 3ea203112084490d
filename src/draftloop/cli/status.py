"""`status`: shows what was collected, what `retrain` would do next, and drift alarms. Loads no model."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..config import SELF
from ..whereabouts import in_rows, places
from .app import App, note, note_damage, print_json
from .break_even import break_even_of
from .options import json_option, model_options

if TYPE_CHECKING:
    from ..evaluation.break_even import BreakEven
    from ..models.draft_vocabulary import DraftVocabulary
    from ..models.self_layers import SelfLayers
    from ..retraining.facts import Facts
    from ..retraining.plan import NextAction
    from ..retraining.running import Running


@click.command()
@model_options
@json_option
@click.pass_obj
def status_command(app: App, as_json: bool) -> None:
    """Show what was collected and what comes next.

    Failures new and used, splits, sources, adapters, drift, a run at work and the next action. Loads no model.
    """
    facts, action, running = read_next_action(app)
    values = _values(app, facts, action, running)
    if as_json:
        print_json({"status": "ok", **places(app.resolved, app.data_dir), **values})
    else:
        _print(app, facts, action, running, values)


def read_next_action(app: App, *, force: bool = False) -> tuple[Facts, NextAction, Running | None]:
    """The facts, and what `retrain` would do now: nothing while a run is at work, because that holds the lock."""
    from ..retraining.facts import read_facts
    from ..retraining.plan import NextAction, next_action
    from ..retraining.running import running

    now = time.time()
    at_work = running(app.data, now)
    facts = read_facts(app.data, app.config, now)
    if at_work is not None:
        return facts, NextAction("nothing", f"another one is at work: {at_work}"), at_work
    return facts, next_action(facts, app.config, force=force), None


RECENT = 50  # generations that say what is accepted now


def _break_even(app: App, facts: Facts) -> BreakEven | None:
    """Of the draft in use, by its latest generations and what its steps took when they were measured last."""
    own = [one.acceptance for one in facts.overview.stream if one.adapter == facts.pointer.champion][-RECENT:]
    return break_even_of(app, facts.target, facts.draft, sum(own) / len(own) if own else None)


def _self_layers(app: App, facts: Facts) -> SelfLayers | None:
    """What a draft of the target's own layers is made of; None where that is no such draft, or nothing is kept yet."""
    if facts.target is None or app.config.models.draft != SELF:
        return None
    return app.data.names.self_layers.of(facts.target)


def _vocabulary(app: App, facts: Facts) -> DraftVocabulary | None:
    """What the draft may propose; None where that is not chosen, and all tokens may be."""
    if facts.draft is None or app.config.models.draft_vocabulary == "all":
        return None
    return app.data.names.vocabularies.of(facts.draft)


def _draft_rows(app: App, facts: Facts) -> dict[str, str]:
    """What was chosen for the draft, and why."""
    layers, chosen = _self_layers(app, facts), _vocabulary(app, facts)
    return {
        **({} if layers is None else {"self-draft": f"{layers.layers} layers: {layers.why}"}),
        **({} if chosen is None else {"draft proposes": chosen.why}),
    }


def _values(app: App, facts: Facts, action: NextAction, running: Running | None) -> dict[str, Any]:
    from ..data.exchange import stored_bytes
    from ..retraining.running import unfinished
    from ..status import damaged_files

    overview, data = facts.overview, app.data
    stored = stored_bytes(data.log, data.blobs)
    last = next(reversed(data.audit.entries()), None)
    return {
        "generations": overview.generations,
        "failures": overview.failures,
        "failures_new": overview.failures_new,
        "failures_used": overview.failures_used,
        "failures_held_out": overview.failures_held_out,
        "failures_near_two_splits": overview.failures_near_two_splits,
        "near_two_splits": overview.near_two_splits,
        "cancelled": overview.cancelled,
        "other_pairs": overview.other_pairs,
        "min_failure_cases": app.config.training.min_failure_cases,
        "heldout_prompts": len(overview.heldout_prompts),
        "splits": dict(overview.splits),
        "sources": dict(overview.sources),
        "adapters": data.registry.versions(),
        "champion": facts.pointer.champion,
        "previous": facts.pointer.previous,
        "candidate": overview.candidate,
        "last_retrain": {name: last[name] for name in ("when", "outcome", "why")} if last else None,
        "next": asdict(action),
        "running": asdict(running) if running else None,
        "unfinished": [asdict(run) for run in unfinished(data, running)],
        "drift": [{**asdict(check), "alarm": check.alarm} for check in facts.drift_checks],
        "generations_of_champion": {"unseen": facts.champion_generations[0], "all": facts.champion_generations[1]},
        "chat_template_changed": facts.template,
        "self_layers": asdict(layers) if (layers := _self_layers(app, facts)) else None,
        "draft_vocabulary": None if (chosen := _vocabulary(app, facts)) is None else chosen.summary(),
        "break_even": asdict(even) if (even := _break_even(app, facts)) else None,
        "log": str(data.log.path),
        "log_bytes": stored.log,
        "teacher_bytes": stored.teacher,
        "prompts_bytes": stored.prompts,
        "replay_bytes": data.replay.size,
        "max_log_mb": app.config.data.max_log_mb,
        "damage": [*overview.damage, *damaged_files(data, but_of=facts.pointer.champion)],
    }


def _print(app: App, facts: Facts, action: NextAction, running: Running | None, values: dict[str, Any]) -> None:
    from ..models.hub import is_local
    from ..retraining.log_bound import is_due
    from .tables import moment, print_pairs

    near = values["near_two_splits"]
    counts = {
        "new": values["failures_new"],
        "used": values["failures_used"],
        "for validation and benchmark": values["failures_held_out"],
        **({"used in no split": values["failures_near_two_splits"]} if values["failures_near_two_splits"] else {}),
    }
    splits, sources = (
        ", ".join(f"{n} {name}" for name, n in values[key].items()) or "none" for key in ("splits", "sources")
    )
    rows: dict[str, object] = {
        **in_rows(app.resolved, app.data_dir),
        "generations": values["generations"],
        "failures": f"{values['failures']} ({', '.join(f'{n} {what}' for what, n in counts.items())})",
        "other targets": values["other_pairs"] and f"{values['other_pairs']} of the generations",
        "splits": splits,
        "near two splits": near and f"{near} of the generations: near prompts of another split, used in neither",
        "cancelled": values["cancelled"] and f"{values['cancelled']} of the generations: nothing is measured on them",
        "sources": sources,
        "adapters": ", ".join(values["adapters"]) or "none",
        "champion": values["champion"] or "none: the bare draft is in use",
        "previous": values["previous"] or "none",
        "candidate": values["candidate"] and f"{values['candidate']}, without a verdict",
    }
    rows |= _draft_rows(app, facts)
    if last := values["last_retrain"]:
        rows["last retrain"] = f"{last['outcome']}, {moment(last['when'])}"
    unseen, every = facts.champion_generations
    if every:  # a draft looks too good on prompts that it was trained on
        draft = facts.pointer.champion or "the bare draft"
        since = f"generations of {draft} since the last verdict"
        rows["watched for drift"] = f"{unseen} of {every} {since} (of prompts that it was not trained on)"
    rows["at work"] = running and str(running)
    if values["unfinished"]:
        *earlier, run = values["unfinished"]
        also = f"; earlier ones: {', '.join(run['run'] for run in earlier)}" if earlier else ""
        how = f"`train --resume {run['run']}` goes on"
        rows["unfinished"] = f"{run['run']}, stopped or cut off after step {run['step']}: {how}{also}"
    rows["next retrain"] = "nothing, while that is at work" if running else f"{action.action} ({action.why})"
    rows["log"] = f"{values['log']} ({values['log_bytes']:,} bytes)"
    rows["on disk"] = _on_disk(values) if values["generations"] else None
    print_pairs({name: value for name, value in rows.items() if value or name == "generations"})
    for alarm in facts.alarms:
        note(
            f"drift: acceptance of {alarm.source} fell from {alarm.reference:.3f} to {alarm.recent:.3f} per position "
            f"({alarm.kind}, after {alarm.generations} generations)"
        )
    even = _break_even(app, facts)
    if even is not None and even.warning is not None:
        note(even.warning)
    if facts.template:
        note(facts.template)
    if is_due(app.data, app.config):
        note("the log is above its bound: `log compact` drops the oldest records that nothing needs")
    note_damage(values["damage"])
    models = app.config.models
    for name, model in (("target", models.target), ("draft", models.target if models.is_self else models.draft)):
        if not is_local(model):
            note(f"{name} {model} is not on this machine, so generations of any are counted; mistyped, or not loaded?")
    if values["generations"]:
        note(f"Prompts and outputs lie under {app.data.root} in plain text, readable by you alone.")


def _on_disk(values: dict[str, Any]) -> str:
    """The sizes of what grows with every generation, and the bound of all but the replay buffer."""
    from ..retraining.log_bound import megabytes

    names = {"log": "log", "teacher": "teacher probabilities", "prompts": "prompt index", "replay": "replay buffer"}
    sizes = [f"{what} {megabytes(values[f'{name}_bytes'])}" for name, what in names.items()]
    bound = f"at most {values['max_log_mb']:,} MB without the replay buffer" if values["max_log_mb"] else "no bound"
    return f"{', '.join(sizes)}; {bound}"
