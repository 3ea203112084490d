"""What a training did, as one flat value: for a person, for `--json` and for the run's `result.json`."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import Loss
from ..registry.registry import Version
from ..runtime.memory import GIGABYTE
from .dataset.mixture import TrainingMixture
from .loop import Progress
from .run import RunDirectory
from .token_report import TokenReport


@dataclass(frozen=True)
class TrainResult:
    """What a training did.

    Attributes:
        version, path: the new version of the adapter and its directory.
        parent: the adapter it started from; None is the bare draft.
        run, run_path: id and directory of the run.
        ended: `finished`, `early stop` or `time limit`.
        steps: optimizer steps made, of `planned_steps`; `best_step` is the one whose weights were kept.
        failures, validation_records, replay_pool: how many records each part has.
        tokens: supervised tokens trained on; `replay_share` is the share of replayed ones in the plan.
        seconds: of training, over all resumptions.
        peak_memory_gb: the most that MLX held since the start or the last resumption.
        train_loss_before: mean of the first step; train_loss_after: mean of the last epoch.
        val_*: before the first step and of the weights kept; None where nothing could be held out.
        skipped_batches: micro-batches that could not be used.
        cut_labels: output tokens beyond `data.max_output_length`.
        left_out: records that could not be used, counted by reason.
        lessons: what was learned from, and which kinds of tokens the draft still misses.
    """

    version: str
    path: str
    parent: str | None
    run: str
    run_path: str
    ended: str
    loss: str
    steps: int
    planned_steps: int
    best_step: int | None
    failures: int
    validation_records: int
    replay_pool: int
    tokens: int
    replay_share: float
    seconds: float
    peak_memory_gb: float
    train_loss_before: float | None
    train_loss_after: float | None
    val_loss_before: float | None
    val_loss_after: float | None
    val_acceptance_before: float | None
    val_acceptance_after: float | None
    skipped_batches: int
    cut_labels: int
    left_out: dict[str, int]
    lessons: TokenReport


@dataclass(frozen=True)
class Ending:
    """How a run came to its end.

    Attributes:
        why: `finished`, `early stop` or `time limit`.
        planned_steps: of the whole course.
        replay_share: of its supervised tokens.
        peak: the most bytes that MLX held.
        lessons: what was learned from, and what is still missed.
    """

    why: str
    planned_steps: int
    replay_share: float
    peak: int
    lessons: TokenReport


def result_of(
    run: RunDirectory,
    version: Version,
    parent: str | None,
    loss: Loss,
    material: TrainingMixture,
    progress: Progress,
    ending: Ending,
) -> TrainResult:
    """All of it together."""
    before, best = progress.before, progress.best
    return TrainResult(
        version=version.name,
        path=str(version.path),
        parent=parent,
        run=run.id,
        run_path=str(run.path),
        ended=ending.why,
        loss=loss,
        steps=progress.step,
        planned_steps=ending.planned_steps,
        best_step=progress.best_step,
        failures=len(material.failures.examples),
        validation_records=len(material.validation.examples),
        replay_pool=len(material.pool.examples),
        tokens=progress.tokens,
        replay_share=ending.replay_share,
        seconds=progress.seconds,
        peak_memory_gb=ending.peak / GIGABYTE,
        train_loss_before=progress.first_loss,
        train_loss_after=progress.epoch_mean_loss,
        val_loss_before=before.loss if before else None,
        val_loss_after=best.loss if best else None,
        val_acceptance_before=before.acceptance if before else None,
        val_acceptance_after=best.acceptance if best else None,
        skipped_batches=progress.skipped,
        cut_labels=material.failures.cut_labels,
        left_out=dict(material.left_out),
        lessons=ending.lessons,
    )
