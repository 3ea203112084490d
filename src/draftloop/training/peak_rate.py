"""Which peak learning rate: a rule by the draft's width, and the search around it. Pure; knows no model and no clock.

The rule is a guess of the right order. The search (`next_rate`) tries the guess g, then goes outwards in factors of 2,
… g/4, g/2, g, 2g, 4g …, until the best rate has a worse one on either side. What each rate gave is a `RateTrial`.

Trials are compared by their loss, and not by the acceptance that is wanted in the end: after few steps a draft that
agrees with hardly anything has learned much that is not accepted yet, and the rate that changes least would win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .validation import ValidationScores

FITTED_RATE = 6e-3  # was measured on a draft of this width, with this scale (docs/decisions: learning)
FITTED_WIDTH = 192
FITTED_SCALE = 2.0
HIGHEST = 1.0  # that may be configured
FACTOR = 2.0  # between neighbours; a power of 2, so that what is printed is the number itself
MOST_TRIALS = 5
SHARE = 0.1  # of a run's steps, or of its time limit, that all trials together may take
LEAST_STEPS = 8  # of a trial; with four or five the best rate was one of a quarter, or of four times what was right
ENOUGH_TRIALS = 3  # for a choice: with less, no rate lies between two others
MOST_STEPS = 20  # of a trial


@dataclass(frozen=True)
class RateTrial:
    """What a short training with one peak learning rate gave.

    Attributes:
        rate: the peak.
        scores: validation scores at its end; None where they are not finite, or too many batches could not be used.
    """

    rate: float
    scores: ValidationScores | None

    def better_than(self, other: RateTrial) -> bool:
        """Whether its loss is lower; where neither has scores, the lower rate is better."""
        if self.scores is None:
            return other.scores is None and self.rate < other.rate
        return other.scores is None or self.scores.loss < other.scores.loss


@dataclass(frozen=True)
class PeakRate:
    """The peak learning rate of a run that was to find its own. Checkpoints hold its fields by name.

    Attributes:
        rate: the peak.
        by: `trials` where it did best in short trials, `parent` where it is the one that the version was made with from
            which the training goes on, `width` where it is the rule's.
        trials: in the order of making; one that the time limit ended is left out.
        steps: optimizer steps of each trial.
        why: why the rule or the parent decides, or why the trials ended before the best rate had a worse one on either
            side.
    """

    rate: float
    by: Literal["trials", "parent", "width"]
    trials: list[RateTrial] = field(default_factory=list)
    steps: int = 0
    why: str | None = None

    def describe(self) -> str:
        """One line for a person: the rate, where it is from, and what each rate gave."""
        if self.by == "width":
            return f"learning rate {self.rate:g}, by the draft's width: {self.why}"
        if self.by == "parent":
            return f"learning rate {self.rate:g}, {self.why}"
        gave = ", ".join(f"{trial.rate:g} {_outcome(trial)}" for trial in sorted(self.trials, key=lambda t: t.rate))
        more = f" ({self.why})" if self.why else ""
        return (
            f"learning rate {self.rate:g}: the best of {len(self.trials)}, each tried for {self.steps} steps{more}; "
            f"loss after them: {gave}"
        )


def rate_by_width(width: int, scale: float) -> float:
    """The rule: rate x scale x width is what was best for the draft on which the defaults were fitted.

    Adam moves every weight by about the rate. What that changes in a layer's output grows with the inputs that it has
    (arXiv 2203.03466) and with the adapter's scale.

    Args:
        width: inputs of the adapted layers.
        scale: of the adapter.

    Returns:
        The rate, in two significant digits, so that it can be given as a number too.
    """
    rate = FITTED_RATE * (FITTED_WIDTH / width) * (FITTED_SCALE / scale)
    return float(f"{min(HIGHEST, rate):.2g}")


def rate_of_parent(name: str, metrics: Mapping[str, Any], config: Mapping[str, Any], rule: float) -> PeakRate | None:
    """The rate that a version was made with, where somebody or a test chose it; None where a test has to.

    A training that goes on from a version is better off with that than with a test of its own: what is nearly learned
    gets worse under any rate in the first steps, so short trials choose one that is too low by a factor of 4
    (docs/decisions: learning rate).

    A rate that was halved again and again is not handed on for ever: below a quarter of the rule's it is tested anew.

    Args:
        name: of the version.
        metrics: of its manifest.
        config: that its manifest says it was trained with.
        rule: the rate by width.
    """
    found, slowed = metrics.get("peak_rate"), metrics.get("slowed", 0)
    chosen = config.get("training", {}).get("learning_rate")  # a number where somebody gave it
    if isinstance(found, Mapping):
        chosen = found["rate"] if found.get("by") in ("trials", "parent") else None
    if not isinstance(chosen, int | float) or (slowed and chosen * 0.5**slowed < rule / FACTOR**2):
        return None
    halved = f", halved {slowed} times" if slowed else ""
    return PeakRate(chosen * 0.5**slowed, "parent", why=f"that of {name}, from which it goes on{halved}")


def trial_steps(planned: int) -> int:
    """Optimizer steps of a trial in a training of so many; 0 where the share is too small for a test."""
    steps = min(MOST_STEPS, int(SHARE * planned / MOST_TRIALS))
    return steps if steps >= LEAST_STEPS else 0


def least_planned() -> int:
    """The fewest planned steps with which there is a test."""
    return round(LEAST_STEPS * MOST_TRIALS / SHARE)


def next_rate(guess: float, trials: Sequence[RateTrial]) -> float | None:
    """The rate to try next; None where the best one is between worse ones, or there were enough trials.

    Args:
        guess: the first one, from the rule.
        trials: made so far.
    """
    if not trials:
        return guess
    best, tried = best_trial(trials).rate, {trial.rate for trial in trials}
    neighbours = (best / FACTOR, best * FACTOR)  # the lower one first: a rate that is too low wrecks nothing
    untried = [rate for rate in neighbours if rate not in tried and rate <= HIGHEST]
    return untried[0] if untried and len(trials) < MOST_TRIALS else None


def best_trial(trials: Sequence[RateTrial]) -> RateTrial:
    """The best of at least one."""
    best = trials[0]
    for trial in trials[1:]:
        best = trial if trial.better_than(best) else best
    return best


def is_enclosed(trials: Sequence[RateTrial]) -> bool:
    """Whether a lower and a higher rate than the best one were tried."""
    best = best_trial(trials).rate
    return min(trial.rate for trial in trials) < best < max(trial.rate for trial in trials)


def _outcome(trial: RateTrial) -> str:
    return "diverged" if trial.scores is None else f"{trial.scores.loss:.4g}"
