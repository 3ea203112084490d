"""What a training did, as one flat value: for a person, for `--json` and for the run's `result.json`."""

from __future__ import annotations

from dataclasses import dataclass

from .peak_rate import PeakRate
from .token_report import TokenReport


@dataclass(frozen=True)
class TrainResult:
    """What a training did. Its fields are keys of `--json` and of `result.json`.

    Attributes:
        version, path: the new version of the adapter and its directory.
        parent: the adapter it started from; None is the bare draft.
        run, run_path: id and directory of the run.
        ended: `finished`, `early stop` or `time limit`.
        loss: the loss that was trained with.
        learning_rate: the peak; peak_rate: how it was chosen, None where it was given.
        steps: optimizer steps made, of `planned_steps`; `best_step` is the one whose weights were kept.
        failures, validation_records, replay_pool: how many records each part has.
        tokens: supervised tokens trained on; `replay_share` is the share of replayed ones in the plan.
        seconds: of training, over all resumptions.
        peak_memory_gb: the most that MLX held since the start or the last resumption.
        train_loss_before: mean of the first step; train_loss_after: mean of the last epoch.
        val_*: before the first step and of the weights kept; None where there is no validation generation.
        skipped_batches: micro-batches that could not be used.
        cut_labels: output tokens beyond `data.max_output_length`.
        left_out: records that could not be used, counted by reason.
        warnings: lines about them that a person should see.
        lessons: the token report.
    """

    version: str
    path: str
    parent: str | None
    run: str
    run_path: str
    ended: str
    loss: str
    learning_rate: float
    peak_rate: PeakRate | None
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
    warnings: tuple[str, ...]
    lessons: TokenReport
