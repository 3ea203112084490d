"""`train`: failures in, a new version of the draft's adapter out."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..errors import NothingToDo, UsageError
from .app import App, config_option, json_option, model_options, print_json
from .output import Doing

if TYPE_CHECKING:
    from ..training.result import TrainResult
    from ..training.token_report import TokenReport

_MAX_MINUTES = "training.max_minutes"
_OPTIONS = [
    ("--epochs", "training.epochs", str),
    ("--loss", "training.loss", str),
    ("--learning-rate", "training.learning_rate", float),
    ("--batch-size", "training.batch_size", int),
    ("--batch-tokens", "training.batch_tokens", int),
    ("--grad-accumulation-steps", "training.gradient_accumulation_steps", int),
    ("--warmup-steps", "training.warmup_steps", int),
    ("--teacher", "training.teacher", str),
    ("--answers", "training.answers", int),
    ("--proposals", "training.proposals", int),
    ("--replay-ratio", "training.replay_ratio", float),
    ("--rank", "training.lora.rank", int),
    ("--scale", "training.lora.scale", float),
    ("--dropout", "training.lora.dropout", float),
    ("--matrices", "training.lora.matrices", str),
    ("--steps-per-report", "training.steps_per_report", int),
    ("--steps-per-eval", "training.steps_per_eval", int),
    ("--val-batches", "training.val_batches", int),
    ("--save-every", "training.save_every", int),
    ("--patience", "training.patience", int),
    ("--max-minutes", _MAX_MINUTES, float),
    ("--memory", "training.memory", str),
    ("--seed", "training.seed", int),
]


def _training_options(command: click.decorators.FC) -> click.decorators.FC:
    for name, key, kind in reversed(_OPTIONS):
        command = config_option(name, key=key, type=kind)(command)
    return command


@click.command(cls=Doing)
@_training_options
@click.option("--from-base", is_flag=True, help="Start from the bare draft, not from the champion's weights.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="latest",
    metavar="[RUN]",
    help="Go on with an interrupted run: its id, or the latest one. With --max-minutes M, for M more minutes from "
    "there, whatever limit it had; also with one that its time limit ended, as long as no later training began.",
)
@model_options
@json_option
@click.pass_obj
def train_command(app: App, from_base: bool, resume: str | None, as_json: bool) -> None:
    """Fine-tune the draft's adapter on logged failures, mixed with replay; gives a new version.

    Starts from the champion's weights where there is one. Held-out generations are never read.
    """
    if resume and (from_base or app.flags.keys() - {_MAX_MINUTES}):
        raise UsageError("--resume goes on with the run's own settings: leave the other options out, but --max-minutes")
    from ..training.run import RunDirectory

    config, data = app.config, app.data
    if not data.exists:  # the lock would make it
        if resume:
            RunDirectory.find(data.runs, resume)  # says that there is none
        raise NothingToDo(f"{data.log.path} holds no generation to train on; run collect-data first")
    with data.training_lock(), data.presence.shown("train"):  # before MLX is imported
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
            result = train(pair, data, config)
    if as_json:
        print_json({"status": "ok", **asdict(result)})
    else:
        from .tables import print_text

        _print(result)
        if result.best_step != 0:
            print_text(_what_is_next(app))


def _what_is_next(app: App) -> str:
    """What the counts of this data directory allow: a gate without prompts decides nothing."""
    from ..retraining.facts import read_facts
    from ..retraining.plan import next_action

    facts = read_facts(app.data, app.config, time.time())
    step = next_action(facts, app.config)
    following = {
        "gate": "`retrain` lets the gate decide",
        "wait": f"{step.why}. `retrain` gates it then",
    }.get(step.action, f"`retrain` would do this first: {step.action} ({step.why})")
    marked = "" if facts.overview.heldout_prompts else " (no prompt is held out yet, so it flatters)"
    by_hand = f"`benchmark acceptance --adapter latest`{marked}, then `adapters promote latest`"
    return f"\nNext: {following}. By hand: {by_hand}."


def _print(result: TrainResult) -> None:
    from .tables import print_pairs, print_text

    left_out = ", ".join(f"{n} ({why})" for why, n in result.left_out.items())
    print_pairs(
        {
            "version": f"{result.version} in {result.path}",
            "started from": result.parent or "the bare draft",
            "trained on": f"{result.failures} failures; {result.tokens:,} tokens, {result.replay_share:.0%} replayed",
            "left out": left_out or "nothing",
            "labels cut": result.cut_labels,
            "steps": f"{result.steps} of {result.planned_steps} ({result.ended}), {result.seconds:.0f} s",
            "peak memory": f"{result.peak_memory_gb:.2f} GB",
            "skipped batches": result.skipped_batches,
            "training loss": _change(result.train_loss_before, result.train_loss_after),
            "validation loss": _change(result.val_loss_before, result.val_loss_after),
            "accepted per position": _change(result.val_acceptance_before, result.val_acceptance_after),
            "weights kept": "the last" if result.best_step is None else f"those after step {result.best_step}",
        }
    )
    _print_lessons(result.lessons)
    if result.ended == "time limit":
        print_text(f"\nThe time limit ended it. More time: `train --resume {result.run} --max-minutes M`.")
    if result.best_step == 0:
        print_text("\nNothing was gained: no later weights did better on validation than those it started from.")


def _print_lessons(lessons: TokenReport) -> None:
    from .tables import percent, print_table, print_text

    learned, measured = lessons.learned_from, lessons.measured_on
    of_what = "validation generations" if lessons.split == "validation" else "failures it trained on"
    print_text(
        f"\nLearned from {learned.positions:,} positions of {learned.generations:,} generations, "
        f"{learned.rejected:,} of them rejected.\n\n"
        f"What the draft still misses, on {measured.positions:,} positions of {measured.generations:,} {of_what}:"
    )
    rows = [
        [
            row.kind,
            row.positions,
            percent(row.share),
            row.rejected,
            row.acceptance_before,
            row.acceptance_after,
            percent(row.remaining),
        ]
        for row in lessons.kinds
    ]
    print_table(["kind of token", "positions", "share", "rejected", "before", "after", "missed"], rows)
    print_text("before, after: accepted per position; missed: share of what is refused now")
    if lessons.kinds[0].acceptance_before is None:
        print_text("before: n/a, for this run did not keep how the draft did at its start")


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "n/a (nothing was held out)"
    return f"{before:.4f} -> {after:.4f}"
