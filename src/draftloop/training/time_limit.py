"""How many steps of a training fit into its time limit, by what the steps so far and all between them took.

Let S be the planned steps and s those made, between two of them. All times are seconds of work, as `WorkingTime` counts
them; `left` is what the limit leaves then. With c the mean time of the latest steps, v of a validation, k of a
checkpoint and w of making new samples, a training that ends at step n, s <= n <= S, takes

    seconds(s, n) = c · (n − s) + v · (validations in [s, n], the closing one at n included)
                    + k · (checkpoints in [s, n)) + Σ w over the stages that begin in [s, n)

and N is the largest n with seconds(s, n) <= left. A validation or checkpoint counts with what the latest one took. So
do new samples, but with no more than they may take, a third of the time left by then, and with all of that before the
first were measured. N takes the place of S in the learning rate's schedule (`step.learning_rate`), which then ends at
the last step that is made. Knows neither model nor clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

WRITING = 1 / 3  # of the time left: the most that new samples may take each time
RECENT = 20  # steps that the pace is the mean of
CALM = 1 / 20  # of the steps left: N stays where it would change by no more


@dataclass
class Pace:
    """What the parts of a training took here, in seconds. Checkpoints hold its fields by name.

    Attributes:
        steps: the latest optimizer steps, at most RECENT. A process's first one is not among them: it compiles.
        validation, saving, writing: the latest validation, checkpoint and new samples; None before the first.
    """

    steps: list[float] = field(default_factory=list)
    validation: float | None = None
    saving: float | None = None
    writing: float | None = None

    @property
    def step(self) -> float | None:
        """Seconds of one optimizer step; None before any was measured."""
        return math.fsum(self.steps) / len(self.steps) if self.steps else None

    def note_step(self, seconds: float) -> None:
        """One more step took so long."""
        self.steps = [*self.steps, seconds][-RECENT:]


@dataclass(frozen=True)
class TimeLimit:
    """The time that a run is given. Its description holds the fields of a limit that there is by name.

    Attributes:
        since_step: the step from which the minutes count; 0 but for a run that was given more time.
        minutes: as the user gave it; inf where no limit was given.
        seconds: of its work in all; inf where there is no limit.
    """

    since_step: int
    minutes: float
    seconds: float

    @classmethod
    def of(cls, minutes: float | None) -> TimeLimit:
        """The limit of a run that begins."""
        return cls(0, math.inf, math.inf) if minutes is None else cls(0, minutes, 60 * minutes)

    @classmethod
    def more(cls, minutes: float, step: int, seconds: float) -> TimeLimit:
        """So many minutes from here, `step` steps and `seconds` of work into the run."""
        return cls(step, minutes, seconds + 60 * minutes)

    def __str__(self) -> str:
        if self.minutes == math.inf:
            return "no time limit"
        more = " more" if self.since_step else ""
        return f"{self.minutes:g}{more} minute{'' if self.minutes == 1 else 's'}"


@dataclass(frozen=True)
class Timetable:
    """At which optimizer steps a training also validates, saves a checkpoint or makes new samples.

    Attributes:
        planned: S, at least 1.
        validations: one at every step that this divides, before new samples are made, and at the end; None is never.
        checkpoints: one at every step that this divides.
        stages: the steps before which new samples are made, in order.
    """

    planned: int
    validations: int | None
    checkpoints: int
    stages: tuple[int, ...] = ()

    def fits(self, step: int, left: float, pace: Pace, validated: bool) -> int | None:
        """N, from `step` to S; None before the time of a step was measured.

        Args:
            step: optimizer steps made.
            left: seconds.
            pace: of the parts.
            validated: whether the training has validated at `step`, and will not once more.
        """
        a_step, closing = pace.step, self._closing(pace)
        if a_step is None:
            return None
        here = step
        while here < self.planned:
            left -= self._between(here, left, pace, validated and here == step)
            following = self._following(here)
            room = math.inf if a_step == 0 or left == math.inf else (left - closing) / a_step
            if room + 1e-9 < following - here:
                return here + max(0, int(room + 1e-9))
            left -= a_step * (following - here)
            here = following
        return self.planned

    def seconds_to(self, end: int, step: int, pace: Pace, validated: bool) -> float | None:
        """What it takes from `step` to `end`, samples before the first not counted; None before a step was measured."""
        a_step, here = pace.step, step
        if a_step is None:
            return None
        seconds = a_step * max(0, end - step)
        while here < end:
            seconds += self._between(here, math.inf, pace, validated and here == step)
            here = self._following(here)
        return seconds + (0.0 if validated and step >= end else self._closing(pace))

    def _between(self, here: int, left: float, pace: Pace, validated: bool) -> float:
        """Seconds between step `here` and the one before it, if the training goes on there with `left` of them."""
        seconds = pace.saving or 0.0 if here % self.checkpoints == 0 else 0.0
        every = self.validations
        if every is not None and not validated and (here % every == 0 or here in self.stages):
            seconds += pace.validation or 0.0
        if here in self.stages:
            most = max(0.0, WRITING * (left - seconds))
            measured = pace.writing if pace.writing is not None else most if most < math.inf else 0.0
            seconds += min(most, measured)
        return seconds

    def _closing(self, pace: Pace) -> float:
        return 0.0 if self.validations is None else pace.validation or 0.0

    def _following(self, here: int) -> int:
        """The next step before which something happens."""
        regular = [every * (here // every + 1) for every in (self.validations, self.checkpoints) if every]
        return min([self.planned, *regular, *(begin for begin in self.stages if begin > here)])


def refitted(fitted: int | None, fits: int, step: int) -> int:
    """The N to go on with: the one before, unless what fits now is off by more than a twentieth of the steps left.

    So a pace that hardly changes moves nothing, and in the last twenty steps N is followed exactly.
    """
    if fitted is None or abs(fits - fitted) > CALM * (fitted - step):
        return fits
    return fitted


def describe_schedule(a_step: float, fitted: int, planned: int, limit: TimeLimit) -> str:
    """How many steps fit, for a person."""
    if fitted >= planned:
        return f"{a_step:.2g} s a step: all {planned} planned steps fit into {limit}"
    counts = f"{fitted} of {planned} planned steps fit into {limit}"
    if limit.since_step:
        counts = f"{fitted - limit.since_step} more, {fitted} of {planned} planned steps in all, fit into {limit}"
    return f"{a_step:.2g} s a step: {counts}; the schedule ends there"
