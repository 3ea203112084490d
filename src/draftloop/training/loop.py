"""The loop over a curriculum's windows: validate, keep the best weights, checkpoint, step, report. Knows no records.

Everything happens between two optimizer steps. There, `Progress` and the learner's state are all there is to a run; a
stop in the middle of a step gives the step up and goes back to the step before it: nothing has changed since. So does
an out-of-memory error: the same step is then tried again in smaller parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import mlx.core as mx
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..config import Training
from ..errors import Interrupted, TrainingFailed
from ..models import adapter as lora
from ..runtime.memory import GIGABYTE
from ..runtime.signals import StopRequest
from .dataset.batch_plan import Window
from .dataset.curriculum import Curriculum
from .dataset.examples import Example
from .losses import Sums
from .memory.fitting import Fit
from .memory.out_of_memory import OutOfMemoryFallback
from .peak_rate import SHARE, PeakRate
from .rate_test import OutOfTime, RateTest
from .report import TRAIN, VALIDATION, Reporter, detail_of, line_of
from .run import RunDirectory
from .step import Learner
from .time_limit import WRITING, Pace, TimeLimit, Timetable, describe_schedule, refitted
from .validation import ValidationScores, validate
from .working_time import WorkingTime

CHANGED = 1 / 4  # of the steps that fit, as reported last: where it is so many fewer, it is reported again
WRECKED = 0.02  # of acceptance per position below that of the start: more than noise, on the same outputs


class _StopNow(Exception):
    """Somebody asked to stop; the step in work is given up."""


@dataclass
class Progress:
    """How far a run has come. Checkpoints hold its fields by name.

    Attributes:
        step: optimizer steps made; the position in the plan.
        tokens: supervised tokens trained on.
        skipped: micro-batches that could not be used, and `skipped_in_row` those right before `step`.
        seconds: of training, over all resumptions, without pauses.
        fitted: the step at which the schedule ends, by the latest estimate of what fits into the time limit; None where
            there is no limit, or before the time of a step was measured.
        pace: what that estimate is made of.
        first_loss: mean loss of the first step, before any update.
        epoch, epoch_loss, epoch_tokens: the epoch in work, and the sums of what it has trained on.
        validated_step: the step after which validation was last made.
        before, best: validation scores of the start and of the weights kept, which are those after `best_step`.
        stale: validations since the best one.
        slowed: times that the learning rate was halved, because the draft got worse than it was at the start.
        skipped_records: by id, how often a record was in what could not be used.
        fit: how micro-batches are cut to fit into memory: a resumed run cuts them alike.
        peak_rate: the learning rate that the run has chosen; None where it is given, or not chosen yet.
    """

    step: int = 0
    tokens: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    seconds: float = 0.0
    fitted: int | None = None
    pace: Pace = field(default_factory=Pace)
    first_loss: float | None = None
    epoch: int = 0
    epoch_loss: float = 0.0
    epoch_tokens: int = 0
    validated_step: int | None = None
    before: ValidationScores | None = None
    best: ValidationScores | None = None
    best_step: int | None = None
    stale: int = 0
    slowed: int = 0
    skipped_records: dict[str, int] = field(default_factory=dict)
    fit: Fit | None = None
    peak_rate: PeakRate | None = None
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        """The progress that `asdict` made an object of. Raises ValueError: of another draftloop."""
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    @property
    def epoch_mean_loss(self) -> float | None:
        """Mean loss of the epoch in work."""
        return self.epoch_loss / self.epoch_tokens if self.epoch_tokens else None


@dataclass
class _SinceReport:
    """Sums since the last report."""

    loss: float = 0.0
    acceptance: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class Loop:
    """One run from where it stands to its end.

    Attributes:
        directory: of the run.
        learner: makes the steps.
        curriculum: what each step is made of.
        validation: micro-batches; empty where there is no validation generation.
        settings: of the training.
        reporter: is told.
        stop: asks to stop.
        progress: where the run stands.
        best: the weights kept so far, where `progress.best` is set.
        fallback: keeps steps and validations within memory.
        limit: of time.
    """

    directory: RunDirectory
    learner: Learner
    curriculum: Curriculum
    validation: Sequence[tuple[Example, ...]]
    settings: Training
    reporter: Reporter
    stop: StopRequest
    progress: Progress
    best: dict[str, mx.array]
    fallback: OutOfMemoryFallback
    limit: TimeLimit

    def __post_init__(self) -> None:
        self.learner.slower = 0.5**self.progress.slowed
        if self.progress.peak_rate is not None:
            self.learner.peak = self.progress.peak_rate.rate
        every = self.settings.steps_per_eval if self.validation else None
        begins = tuple(self.curriculum.begins)
        self._timetable = Timetable(self.curriculum.steps, every, self.settings.save_every, begins)
        self._since = _SinceReport()
        self._time = WorkingTime()
        self._first = self.progress.step  # of this process
        self._reported: int | None = None  # the steps that fit, as reported last
        self._saved_step: int | None = None
        self._evaluated = 0  # batches of the validation in work

    @property
    def end(self) -> int:
        """The step at which the schedule ends: that of the plan, or the last one that fits into the time limit."""
        planned, fitted = self._timetable.planned, self.progress.fitted
        return planned if fitted is None else fitted

    def run(self) -> str:
        """Train to the end; the draft then carries the best weights, or without validation the last.

        Returns:
            Why it ended: `finished`, `early stop` or `time limit`.

        Raises:
            Interrupted: asked to stop; a checkpoint was written.
            TrainingFailed: too many micro-batches in a row could not be used, not one fits into memory, or the first
                validation is not finite.
        """
        with self._time:
            self.reporter.move(self.progress.step, self.end, left=self._seconds_left())
            self.directory.note_progress(self.progress.step, self.end, self._seconds_left())
            try:
                ended = self._until_the_end()
            except _StopNow:
                self.save()
                raise Interrupted(
                    f"after step {self.progress.step} of {self.end} of run {self.directory.id}; "
                    f"`train --resume {self.directory.id}` goes on from there"
                ) from None
        self.save()
        if self.best:
            lora.load_parameters(self.learner.draft, self.best)
        self.learner.draft.eval()
        return ended

    def save(self) -> None:
        """Write a checkpoint of where the run stands. Raises StoreError: the disk refused."""
        self.progress.fit = self.learner.fit
        best = {f"best.{name}": value for name, value in self.best.items()}
        self.directory.checkpoints.save({**self.learner.state(), **best}, asdict(self.progress))
        self._saved_step = self.progress.step

    def _until_the_end(self) -> str:
        progress, settings = self.progress, self.settings
        while True:
            # 1. How many steps fit into the time limit, and whether one more does.
            self._fit_to_the_limit()
            ended = self._why_ended()
            # 2. Validate. Before on-policy samples, too: a wrecked draft would make the samples of a whole stage.
            regular = progress.step % settings.steps_per_eval == 0 or progress.step in self._timetable.stages
            if self.validation and (regular or ended is not None) and not self._is_validated:
                progress.pace.validation = self._timed(self._validate)
                continue  # it may have been one too many without a better one
            if ended is not None:
                return ended
            # 3. Choose the learning rate, if it is not given.
            if settings.learning_rate == "auto" and progress.peak_rate is None:
                self._choose_rate()
                continue  # it may have taken the time that there was
            # 4. Save.
            if progress.step % settings.save_every == 0 and self._saved_step != progress.step:
                progress.pace.saving = self._timed(self.save)
            # 5. Step. New samples are counted by themselves, and a process compiles in its first step: neither is pace.
            seconds, made = self._timed(self._step), progress.step - 1
            if made > self._first:
                sampling = (progress.pace.writing or 0.0) if made in self._timetable.stages else 0.0
                progress.pace.note_step(seconds - sampling)
            self.directory.note_progress(progress.step, self.end, self._seconds_left())

    @property
    def _is_validated(self) -> bool:
        return self.progress.validated_step == self.progress.step

    def _fit_to_the_limit(self) -> None:
        """Estimate anew how many steps fit; once the end is reached it is the end."""
        progress, left = self.progress, self.limit.seconds - self.progress.seconds
        if left < math.inf and (progress.fitted is None or progress.step < progress.fitted):
            fits = self._timetable.fits(progress.step, left, progress.pace, self._is_validated)
            if fits is not None:
                fitted = progress.fitted = refitted(progress.fitted, fits, progress.step)
                # At first, and where it is far less than was reported; the bar shows every change.
                if self._reported is None or self._reported - fitted > max(CHANGED * self._reported, 2):
                    self._reported = fitted
                    a_step = progress.pace.step or 0.0
                    self.reporter.say(describe_schedule(a_step, fitted, self._timetable.planned, self.limit))
        self.learner.steps = self.end

    def _seconds_left(self) -> float | None:
        """At most, at the pace of the latest steps, and within the time limit; None before a step was measured."""
        progress = self.progress
        seconds = self._timetable.seconds_to(self.end, progress.step, progress.pace, self._is_validated)
        return None if seconds is None else min(seconds, max(0.0, self.limit.seconds - progress.seconds))

    def _why_ended(self) -> str | None:
        progress = self.progress
        if progress.step >= self._timetable.planned:
            return "finished"
        if self.validation and progress.stale >= self.settings.patience:
            return "early stop"
        over = progress.seconds >= self.limit.seconds or progress.step >= self.end
        return "time limit" if over else None

    def _timed(self, work: Callable[[], None]) -> float:
        """Do it, and count the seconds that it took; these."""
        start = self._time.now()
        try:
            work()
        finally:
            taken = self._time.now() - start
            self.progress.seconds += taken
        return taken

    def _choose_rate(self) -> None:
        """By short trials; a run that is stopped or killed meanwhile makes them again, and chooses the same."""
        progress, learner = self.progress, self.learner
        start, allowed = self._time.now(), SHARE * (self.limit.seconds - progress.seconds)

        def check() -> None:
            self._check()
            if self._time.now() - start > allowed:
                raise OutOfTime

        def choose() -> None:
            progress.peak_rate = test.choose()

        windows = self.curriculum.plan.windows
        test = RateTest(
            learner, windows, self.validation, self.fallback, check, self.reporter.note, self._time.now, allowed
        )
        if test.why_not is None:
            progress.pace.saving = self._timed(self.save)
        seconds = self._timed(choose)
        assert progress.peak_rate is not None
        learner.peak = progress.peak_rate.rate
        learner.begin_anew(learner.slower)
        self._saved_step = None  # what was saved does not know the rate
        took = f" ({seconds:.1f} s)" if progress.peak_rate.trials else ""
        self.reporter.say(f"{progress.peak_rate.describe()}{took}")
        self.reporter.move(progress.step, self.end, left=self._seconds_left())

    def _check(self) -> None:
        if self.stop:
            raise _StopNow

    def _window(self) -> Window:
        """What the next step is made of; where there is a time limit, new samples get their share of it."""
        start, step = self._time.now(), self.progress.step
        allowed = WRITING * (self.limit.seconds - self.progress.seconds)

        def enough() -> bool:
            self._check()
            return self._time.now() - start >= allowed

        window = self.curriculum.window(step, enough)
        if step in self._timetable.stages:
            self.progress.pace.writing = self._time.now() - start
        return window

    def _step(self) -> None:
        # 1. The step.
        progress, since = self.progress, self._since
        window = self._window()
        following = self.curriculum.known_window(progress.step + 1)
        start = self._time.now()
        result = self.fallback.run(
            lambda: self.learner.train(window, progress.step, progress.skipped_in_row, self._check, following),
            window.micro_batches,
            droppable=True,
        )
        since.seconds += self._time.now() - start
        # 2. Progress.
        if window.epoch != progress.epoch:
            progress.epoch, progress.epoch_loss, progress.epoch_tokens = window.epoch, 0.0, 0
        if progress.first_loss is None and result.tokens:
            progress.first_loss = result.loss / result.tokens
        progress.step += 1
        progress.tokens += result.tokens
        progress.skipped += len(result.skipped)
        progress.skipped_in_row = result.skipped_in_row
        progress.epoch_loss += result.loss
        progress.epoch_tokens += result.tokens
        for batch in result.skipped:
            for record_id in batch.record_ids:
                progress.skipped_records[record_id] = progress.skipped_records.get(record_id, 0) + 1
            self.reporter.say(f"step {progress.step}: skipped records {', '.join(batch.record_ids)}: {batch.reason}")
        # 3. The report: means since the last one.
        since.loss += result.loss
        since.acceptance += result.acceptance
        since.tokens += result.tokens
        values = {
            "step": progress.step,
            "epoch": progress.epoch + 1,
            "loss": since.loss / since.tokens if since.tokens else None,  # None where every batch was skipped
            "acceptance": since.acceptance / since.tokens if since.tokens else None,
            "gradient_norm": result.gradient_norm,
            "learning_rate": result.learning_rate,
            "tokens_per_second": since.tokens / max(since.seconds, 1e-9),
            "peak_memory_gb": self.fallback.peak / GIGABYTE,
            "skipped_batches": progress.skipped,
            "tokens": progress.tokens,
            "seconds": progress.seconds,
        }
        self.reporter.move(progress.step, self.end, detail_of(values), self._seconds_left())
        if progress.step % self.settings.steps_per_report == 0 or progress.step == self.end:
            self.reporter.report(TRAIN, values, line_of(values, self.end))
            self._since = _SinceReport()

    def _validate(self) -> None:
        # 1. The scores of the weights as they are.
        self._evaluated = 0
        scores = self.fallback.run(lambda: validate(self.validation, self._evaluate), self.validation, droppable=False)
        progress = self.progress
        if progress.before is None and not scores.are_finite:
            raise TrainingFailed(
                f"the first validation gives loss {scores.loss} and acceptance {scores.acceptance}: the logits of "
                "draft or target are not finite before anything is learned. Look at the models and at the adapter that "
                "is trained on; no adapter was made"
            )
        # 2. The best weights so far are kept.
        if scores.better_than(progress.best):
            progress.best, progress.best_step, progress.stale = scores, progress.step, 0
            self.best = lora.adapter_parameters(self.learner.draft)
        else:
            progress.stale += 1
        progress.before = progress.before or scores
        # 3. A draft that got worse than it was at the start goes back to them.
        if not scores.are_finite or scores.acceptance < progress.before.acceptance - WRECKED:
            self._slow_down(scores, progress.before)
        progress.validated_step = progress.step
        mark = " (best so far)" if progress.best_step == progress.step else ""
        self.reporter.report(
            VALIDATION,
            {"step": progress.step, **asdict(scores), "best": bool(mark)},
            f"validation after step {progress.step}: loss {scores.loss:.4f}, "
            f"acceptance per position {scores.acceptance:.4f}{mark}",
        )

    def _slow_down(self, scores: ValidationScores, before: ValidationScores) -> None:
        """Back to the best weights with half the rate, and without the moments that led away from them."""
        progress = self.progress
        progress.slowed, progress.stale = progress.slowed + 1, 0
        lora.load_parameters(self.learner.draft, self.best)
        self.learner.begin_anew(0.5**progress.slowed)
        is_given = self.settings.learning_rate != "auto"
        advice = "; a lower training.learning_rate would have saved these steps" if is_given else ""
        self.reporter.say(
            f"after step {progress.step} the draft is worse than it was at the start (acceptance per "
            f"position {scores.acceptance:.4f} of {before.acceptance:.4f}): back to the weights of step "
            f"{progress.best_step}, with the learning rate times 1/{2**progress.slowed}{advice}"
        )

    def _evaluate(self, batch: tuple[Example, ...]) -> Sums:
        self._check()
        self._evaluated += 1
        self.reporter.note(f"validation: {self._evaluated} of {len(self.validation)} batches")
        return self.learner.evaluate(batch)
