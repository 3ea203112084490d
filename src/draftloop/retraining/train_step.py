"""The training step of `retrain`, within its limits of time and memory. It gives up runs that cannot be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..config import Config
from ..data_directory import DataDirectory
from ..errors import Interrupted, NothingToDo, PairError, RunError, StoreError, TrainingFailed
from ..runtime.memory import smaller
from ..training.run import RunDirectory
from .facts import PURPOSE
from .work import Work

if TYPE_CHECKING:
    from ..training.result import TrainResult
    from ..training.train import OnStep

MAX_RESUMPTIONS = 3  # from one and the same step


def train_candidate(work: Work) -> None:
    """Train a candidate on top of the champion; runs that were cut off and cannot be resumed are given up first.

    Raises:
        TrainingFailed: the run is given up.
        Interrupted, StoreError, PairError: as in training.
    """
    from ..training.train import train as train_adapter

    for run in _unfinished(work):
        work.say(f"run {run.id} was cut off and cannot be resumed: starting clean")
        run.give_up("cut off, without a checkpoint on top of this champion and pair, for a teacher that is at hand")
    with _training(work) as on_step:
        pair, config = work.pair(work.data.registry.pointer()), _config_of_training(work)
        pair = work.with_settled_layers(pair, config, on_step)
        _note_trained(work, train_adapter(pair, work.data, config, on_step=on_step, stop=work.stop, purpose=PURPOSE))


def resume_training(work: Work, run: str) -> None:
    """Resume a run that was cut off, or give it up where that cannot be.

    Raises as `train_candidate`; TrainingFailed too after MAX_RESUMPTIONS from one step: what killed it there kills it
    again.
    """
    from ..training.train import resume as resume_run

    work.result.run = run
    directory = RunDirectory(work.data.runs / run, work.data.files)
    try:
        if directory.config() != _config_of_training(work):
            work.result.recipe = None  # a failure then is one of other settings than today's
        with _training(work) as on_step:
            if directory.note_resumption() > MAX_RESUMPTIONS:
                raise TrainingFailed(f"run {run} was resumed {MAX_RESUMPTIONS} times and came no further")
            _note_trained(work, resume_run(run, work.data, load=work.load_bare, on_step=on_step, stop=work.stop))
    except RunError as error:
        work.say(f"run {run} cannot be resumed: {error}")
        directory.give_up(str(error))
    except (Interrupted, KeyboardInterrupt, StoreError, PairError):
        directory.forget_resumptions()
        raise


def note_killed_on_purpose(data: DataDirectory) -> None:
    """A training that was killed for its memory did not fail, however often that happens.

    Raises:
        StoreError: the disk refused.
    """
    for run in RunDirectory.unfinished(data.runs, PURPOSE, data.files):
        run.forget_resumptions()


@contextmanager
def _training(work: Work) -> Iterator[OnStep]:
    """Around a training: one that fails by its numbers, or out of memory, would fail again, so its run is given up.

    Yields what the training calls after every step, even where `work` has none: it keeps the training off the terminal.
    """

    def on_step(done: int, steps: int) -> None:
        if work.on_step is not None:
            work.on_step(done, steps)

    if work.on_work is not None:  # until the first step: reading, and measuring how much memory a step takes
        work.on_work("getting ready to train", 0, 0)
    try:
        yield on_step
    except TrainingFailed as error:
        for run in _unfinished(work):
            run.give_up(str(error))
        raise
    except NothingToDo as error:
        work.result.trained = True
        work.result.end("nothing", str(error))
    except Interrupted as error:
        where, _, how = str(error).partition(";")
        if "--resume" not in how:
            raise  # before there was a run
        raise Interrupted(f"{where}; the next `retrain` goes on from there") from None


def _unfinished(work: Work) -> list[RunDirectory]:
    """The unfinished runs of these models; others may be resumed under their own configuration."""
    runs = []
    for run in RunDirectory.unfinished(work.data.runs, PURPOSE, work.data.files):
        try:
            of_these_models = run.config().models.of_training == work.config.models.of_training
        except RunError:  # a configuration that nobody can read any more
            of_these_models = True
        if of_these_models:
            runs.append(run)
    return runs


def _note_trained(work: Work, result: TrainResult) -> None:
    work.result.trained, work.result.run, work.result.version = True, result.run, result.version
    work.forget_pair()
    for line in result.warnings:
        work.say(line)
    work.say(
        f"trained {result.version} in run {result.run}: {result.steps} steps ({result.ended}), "
        f"{result.seconds:.0f} s, at most {result.peak_memory_gb:.2f} GB, on {result.failures} failures"
    )


def _config_of_training(work: Work) -> Config:
    """The configuration with the shortest of the time limits and the smallest of the memory limits."""
    config = work.config
    limits = [limit for limit in (config.training.max_minutes, config.retrain.max_minutes) if limit]
    memory = smaller(smaller(config.training.memory, config.retrain.max_memory_gb), work.memory_gb)
    training = config.training.model_copy(update={"max_minutes": min(limits, default=None), "memory": memory})
    return config.model_copy(update={"training": training})
