"""The rate test: short trainings from where a run begins, one for each peak learning rate tried. Knows no file.

    guess -> trial: the run's first windows, a rate that warms up and falls to 0 -> validation ┐
      └───────────────────────── next_rate: outwards until the best one is between worse ones ─┴-> PeakRate

Each trial begins with the adapter, optimizer and random state of the run's beginning, and these come back at its end,
however it ends: the run after a test is the run that is given that rate. Held-out prompts are not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import BatchesUnusable
from ..models import adapter as lora
from ..runtime.rng import get_state, set_state
from .dataset.batch_plan import Window
from .dataset.examples import Example
from .losses import Sums
from .memory.out_of_memory import OutOfMemoryFallback
from .peak_rate import (
    ENOUGH_TRIALS,
    LEAST_STEPS,
    MOST_TRIALS,
    PeakRate,
    RateTrial,
    best_trial,
    is_enclosed,
    least_planned,
    next_rate,
    trial_steps,
)
from .step import Learner
from .validation import ValidationScores, spread_over, validate


class OutOfTime(Exception):
    """The test has had its share of the time limit; the trial in work is given up."""


@dataclass
class RateTest:
    """The test of one run.

    Attributes:
        learner: stands where the run begins, before its first step, with the guess as its peak.
        windows: of the run, from its beginning.
        validation: micro-batches; each trial takes at most as many of them as it has steps.
        fallback: keeps steps and validations within memory; what it finds out stays.
        check: called before each micro-batch; may raise OutOfTime, or anything else to give up the test.
        note: told what is being done.
        clock: seconds of work.
        allowed: seconds that all of it may take; infinite without a time limit.
    """

    learner: Learner
    windows: Sequence[Window]
    validation: Sequence[tuple[Example, ...]]
    fallback: OutOfMemoryFallback
    check: Callable[[], None]
    note: Callable[[str], None]
    clock: Callable[[], float]
    allowed: float = math.inf

    @property
    def why_not(self) -> str | None:
        """Why no trial can be made; None where it can."""
        if not self.validation:
            return "there is no validation generation to test rates on"
        if not trial_steps(len(self.windows)):
            return f"{len(self.windows)} steps are too few for a test of rates, which needs {least_planned()}"
        return None

    def choose(self) -> PeakRate:
        """Try rates and take the best; the rule's where that cannot be done.

        Raises:
            TrainingFailed: not one example fits into memory.
        """
        guess, steps, why_not = self.learner.peak, trial_steps(len(self.windows)), self.why_not
        if why_not is not None:
            return PeakRate(guess, "width", why=why_not)
        # 1. Trials until the best one is between worse ones.
        trials: list[RateTrial] = []
        before: ValidationScores | None = None
        out_of_time = False
        try:
            steps = self._fitting(steps)
            before = self._validate(steps) if steps else None
            while steps and (rate := next_rate(guess, trials)) is not None:
                trials.append(self._trial(rate, steps, len(trials) + 1))
        except OutOfTime:
            out_of_time = True
        # 2. The choice.
        why = "the time limit leaves a test no more" if out_of_time or not steps else None
        if why and len(trials) < ENOUGH_TRIALS:
            return PeakRate(guess, "width", trials, steps, why)
        best = best_trial(trials)
        if best.scores is None:
            return PeakRate(guess, "width", trials, steps, "training diverged with every rate tried")
        if before is not None and best.scores.loss >= before.loss:  # then the best is the rate that does the least
            return PeakRate(guess, "width", trials, steps, f"no rate tried lowered the loss within {steps} steps")
        if why is None and not is_enclosed(trials):
            why = "the best is at the end of what is tried"
        return PeakRate(best.rate, "trials", trials, steps, why)

    def _fitting(self, steps: int) -> int:
        """As many steps, at most `steps`, that enough trials of them fit into the time; 0 where that is too few."""
        if math.isinf(self.allowed):
            return steps
        began = self.clock()
        first, again = self._seconds_of_a_step(steps)
        left = self.allowed - (self.clock() - began)
        of_a_step = max(first, again) + (ENOUGH_TRIALS - 1) * again  # in all trials: the first one has more to do
        fitting = int(left / of_a_step) if of_a_step else steps
        return min(steps, fitting) if fitting >= LEAST_STEPS else 0

    def _seconds_of_a_step(self, steps: int) -> tuple[float, float]:
        """Of a trial, with the one micro-batch of the validation that each step may have: the first time, and again.

        The teacher reads a record once, and what it kept serves all later trials.
        """
        seconds = [0.0, 0.0]
        with self._set_aside(self.learner.peak, steps):
            try:
                self._step(self.windows[0], 0, 0)  # what only a process's first step takes is no trial's
                for number in range(len(seconds)):
                    began = self.clock()
                    self.note("testing learning rates: how long a step takes")
                    self._step(self.windows[1 % len(self.windows)], 1, 0)
                    self._validate(1)
                    seconds[number] = self.clock() - began
            except BatchesUnusable:
                pass  # the trials find out whether that is the rate's doing
        return seconds[0], seconds[1]

    def _trial(self, rate: float, steps: int, number: int) -> RateTrial:
        """From the beginning to the end of a short training of its own; then all is as it was."""
        with self._set_aside(rate, steps):
            in_row = 0
            try:
                for step, window in enumerate(self.windows[:steps]):
                    of = f"trial {number} of at most {MOST_TRIALS}, step {step + 1} of {steps}"
                    self.note(f"testing learning rate {rate:g}: {of}")
                    in_row = self._step(window, step, in_row)
                scores = self._validate(steps)
            except BatchesUnusable:  # a rate with which this happens is too high; that of the run would end it
                return RateTrial(rate, None)
        return RateTrial(rate, scores if scores.are_finite else None)  # JSON has no NaN

    @contextmanager
    def _set_aside(self, rate: float, steps: int) -> Iterator[None]:
        """Within the block, a training of so many steps with that peak; after it, all is as it was."""
        learner = self.learner
        adapter, random = lora.adapter_parameters(learner.draft), get_state()
        peak, planned = learner.peak, learner.steps
        learner.peak, learner.steps = rate, steps
        try:
            yield
        finally:
            learner.peak, learner.steps = peak, planned
            lora.load_parameters(learner.draft, adapter)
            learner.begin_anew(learner.slower)  # the moments of a beginning need not be kept: they are zero
            set_state(random)
            learner.draft.eval()

    def _validate(self, most: int) -> ValidationScores:
        """On at most so many micro-batches of the split."""
        batches = spread_over(self.validation, most)
        return self.fallback.run(lambda: validate(batches, self._evaluate), batches, droppable=False)

    def _step(self, window: Window, step: int, in_row: int) -> int:
        def work() -> int:
            return self.learner.train(window, step, in_row, self.check).skipped_in_row

        return self.fallback.run(work, window.micro_batches, droppable=True)

    def _evaluate(self, batch: tuple[Example, ...]) -> Sums:
        self.check()
        return self.learner.evaluate(batch)
