"""`train`: trains a new version of the draft's adapter on failures."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..errors import NothingToDo, UsageError
from .app import App, note, print_json
from .options import config_options, json_option, model_options
from .output import Doing

if TYPE_CHECKING:
    from ..training.result import TrainResult

_MAX_MINUTES = "training.max_minutes"


@click.command(cls=Doing)
@config_options("training", "epochs loss learning_rate batch_size batch_tokens gradient_accumulation_steps")
@config_options("training", "warmup_steps teacher answers proposals replay_ratio")
@config_options("training.lora", "rank scale dropout matrices")
@config_options("training", "steps_per_report steps_per_eval val_batches save_every patience max_minutes memory seed")
@click.option("--from-base", is_flag=True, help="Start from the bare draft, not from the champion.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="latest",
    metavar="[RUN]",
    help="Go on with an interrupted run: its id, or the latest one. With --max-minutes M it gets M more minutes, "
    "whatever its limit was, and a run that its time limit ended goes on too, if no later training began.",
)
@model_options
@json_option
@click.pass_obj
def train_command(app: App, from_base: bool, resume: str | None, as_json: bool) -> None:
    """Train the draft's adapter on failures.

    Mixes in replay, starts from the champion if there is one, and publishes a new version. Chooses the training length
    from the amount of data, unless --epochs or --max-minutes sets it. Never reads held-out generations.
    """
    if resume and (from_base or app.flags.keys() - {_MAX_MINUTES}):
        raise UsageError("--resume goes on with the run's own settings: leave the other options out, but --max-minutes")
    from ..training.run import RunDirectory

    config, data = app.config, app.data
    if not data.exists:  # the lock would make it
        if resume:
            RunDirectory.find(data.runs, resume)  # raises: there is none
        raise NothingToDo(f"{data.log.path} holds no generation to train on; run collect-data first")
    with data.training_lock(), data.presence.shown("train"):  # before MLX is imported
        from ..retraining.layers_choice import settle_layers
        from ..retraining.vocabulary_choice import settle_vocabulary
        from ..training.train import resume as resume_run
        from ..training.train import train

        if resume:
            more = config.training.max_minutes if _MAX_MINUTES in app.flags else None
            app.say_where(RunDirectory.find(data.runs, resume, more_time=more is not None))
            result = resume_run(resume, data, more_minutes=more)
        else:
            adapter = "none" if from_base else "champion"
            pair = app.load_pair(adapter, lazy_target=config.training.teacher != "live")
            app.say_where()
            pair = settle_layers(pair, data, config, note)
            result = train(pair, data, config)
            # Without a live teacher the target is not loaded, and the gate's comparison chooses. It is for good, so not
            # with weights that learned nothing: the fewest tokens are enough for what a bare draft has accepted.
            if config.training.teacher == "live" and result.best_step != 0:
                settle_vocabulary(pair, data, config, note)
    if as_json:
        print_json({"status": "ok", **asdict(result)})
        return
    from .tables import print_text

    _print(result)
    from .break_even import note_where_it_does_not_pay

    identity = data.registry.manifest(result.version).pair
    if identity is not None:
        note_where_it_does_not_pay(app, identity.target, identity.draft, result.val_acceptance_after)
    if result.ended == "time limit":
        print_text(f"\nThe time limit ended it. More time: `train --resume {result.run} --max-minutes M`.")
    if result.best_step == 0:
        print_text("\nNothing was gained: no later weights did better on validation than those it started from.")
    else:
        print_text(_what_is_next(app))


def _what_is_next(app: App) -> str:
    """What `retrain` would do now, and what to do by hand."""
    from ..retraining.facts import read_facts
    from ..retraining.plan import next_action

    facts = read_facts(app.data, app.config, time.time())
    action = next_action(facts, app.config)
    following = {
        "gate": "`retrain` lets the gate decide",
        "wait": f"{action.why}. `retrain` gates it then",
    }.get(action.action, f"`retrain` would do this first: {action.action} ({action.why})")
    marked = "" if facts.overview.heldout_prompts else " (no prompt is held out yet, so it flatters)"
    by_hand = f"`benchmark acceptance --adapter latest`{marked}, then `adapters promote latest`"
    return f"\nNext: {following}. By hand: {by_hand}."


def _print(result: TrainResult) -> None:
    from .tables import percent, print_pairs, print_records, print_text

    left_out = ", ".join(f"{n} ({why})" for why, n in result.left_out.items())
    print_pairs(
        {
            "version": f"{result.version} in {result.path}",
            "started from": result.parent or "the bare draft",
            "trained on": f"{result.failures} failures; {result.tokens:,} tokens, {result.replay_share:.0%} replayed",
            "left out": left_out or "nothing",
            "labels cut": result.cut_labels,
            "steps": f"{result.steps} of {result.planned_steps} ({result.ended}), {result.seconds:.0f} s",
            "learning rate": f"{result.learning_rate:g} ({_how_chosen(result)})",
            "peak memory": f"{result.peak_memory_gb:.2f} GB",
            "skipped batches": result.skipped_batches,
            "training loss": _change(result.train_loss_before, result.train_loss_after),
            "validation loss": _change(result.val_loss_before, result.val_loss_after),
            "acceptance per position": _change(result.val_acceptance_before, result.val_acceptance_after),
            "weights kept": "the last" if result.best_step is None else f"those after step {result.best_step}",
        }
    )
    report = result.lessons
    learned, measured = report.learned_from, report.measured_on
    of_what = "validation generations" if report.split == "validation" else "failures it trained on"
    print_text(
        f"\nTrained on {learned.positions:,} positions of {learned.generations:,} generations, "
        f"{learned.rejected:,} of them rejected.\n\n"
        f"What the target still rejects, on {measured.positions:,} positions of {measured.generations:,} {of_what}:"
    )
    print_records(
        report.kinds,
        {
            "kind of token": "kind",
            "positions": "positions",
            "share": lambda row: percent(row.share),
            "rejected": "rejected",
            "before": "acceptance_before",
            "after": "acceptance_after",
            "missed": lambda row: percent(row.remaining),
        },
    )
    print_text("before, after: acceptance per position; missed: share of what is still rejected")
    if report.kinds[0].acceptance_before is None:
        print_text("before: n/a, because this run did not keep how the draft did at its start")


def _how_chosen(result: TrainResult) -> str:
    chosen = result.peak_rate
    if chosen is None:
        return "given"
    return {
        "trials": f"the best of {len(chosen.trials)} tried",
        "parent": f"that of {result.parent}",
        "width": "by the draft's width",
    }[chosen.by]


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "n/a (no validation generation)"
    return f"{before:.4f} -> {after:.4f}"
