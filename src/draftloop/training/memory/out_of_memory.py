"""Steps and validations within a budget of memory: stepped down where they took too much, and then tried again.

A want of memory is either told by MLX, as an error that gave the work up, or seen afterwards, as more taken than
allowed: a CPU tells nothing until it is too late. Each step down is said once. Knows no plan but its micro-batches.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import mlx.core as mx

from ...errors import TrainingFailed
from ...models import adapter as lora
from ...runtime import memory
from ..dataset.examples import Example
from ..step import Learner
from .fitting import SAFETY, Cost, Fit, measured

Result = TypeVar("Result")
Batches = Sequence[Sequence[Example]]

_ADAPTERS = 6  # of its size: the best weights, a window's gradients and their mean, and what a step began with
ADVICE = (
    "take training.teacher logged, lower data.max_output_length, data.max_prompt_length, training.lora.rank or "
    "training.teacher_memory_mb, close other programs, or allow more with training.memory (and retrain.max_memory_gb)"
)


class OutOfMemoryFallback:
    """Does a learner's work, and changes its fit.

    Args:
        learner: whose fit is changed.
        everything: the micro-batches that are trained on, but for texts still to be written.
        budget: bytes that MLX may hold; None is no bound.
        say: told of each step down.
    """

    def __init__(
        self, learner: Learner, everything: Batches, budget: memory.Budget | None, say: Callable[[str], None]
    ) -> None:
        self._learner, self._everything, self._budget, self._say = learner, everything, budget, say
        self._peak = 0
        self._warned = False

    @property
    def peak(self) -> int:
        """The most bytes that MLX has held since the first work."""
        return max(self._peak, int(mx.get_peak_memory()))

    def do(self, work: Callable[[], Result], batches: Batches, *, droppable: bool) -> Result:
        """Do it, again and again in smaller parts while MLX is refused memory.

        Args:
            work: on these micro-batches; where it raises, it has changed nothing.
            batches: whose parts are made smaller.
            droppable: whether the end of an example may be left out where it does not fit alone.

        Raises:
            TrainingFailed: nothing is left to step down to.
        """
        self._peak = self.peak
        mx.reset_peak_memory()
        while True:
            try:
                found = work()
                break
            except memory.REFUSALS as error:
                if not memory.is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())
            self._after_refusal(reason, batches, droppable)  # not above: the error holds on to all of the work's arrays
        self._after_success(batches)
        return found

    def _after_refusal(self, reason: str, batches: Batches, droppable: bool) -> None:
        gc.collect()
        memory.release()
        self._peak = self.peak
        mx.reset_peak_memory()  # what was refused is not what the next try takes
        stuck = not droppable and self._learner.fit.is_smallest(batches)
        fit = None if stuck else self._learner.fit.fallback(batches, cut=droppable)
        if fit is None or not any(fit.fitted(one) for batch in self._everything for one in batch):
            raise TrainingFailed(
                f"one example alone, with activations computed again, does not fit into memory ({reason}); {ADVICE}"
            )
        self._learner.fit = fit
        self._say(f"out of memory ({reason}); trying again: {fit.describe(self._everything)}")

    def _after_success(self, batches: Batches) -> None:
        peak, allowed = mx.get_peak_memory(), self._budget
        if allowed is None or peak <= allowed.bytes:
            return
        found = f"{memory.gigabytes(peak)} GB were taken, and {allowed} are allowed"
        fit = None if self._learner.fit.is_smallest(batches) else self._learner.fit.fallback(batches)
        if fit is not None:
            self._learner.fit = fit
            self._say(f"{found}; from now on, {fit.describe(self._everything)}")
        elif allowed.strict:
            raise TrainingFailed(f"{found}, one example at a time; {ADVICE}")
        elif not self._warned:
            self._warned = True
            self._say(f"{found}, one example at a time; going on as long as it works")


def estimate_fit(learner: Learner, batches: Batches, allowed: memory.Budget, kept: int, per_label: int) -> Fit:
    """How to work on micro-batches within a budget, by estimate: measured on the learner itself, in a second or so.

    Args:
        learner: stands as it will when the training begins.
        batches: all that are known, and what is foreseen of others.
        allowed: bytes that MLX may hold.
        kept: of them, bytes that the teacher will come to hold.
        per_label: bytes that it takes for a supervised position of a part, beside what it keeps.

    Raises:
        TrainingFailed: the models alone leave no room, or not one example fits.
    """
    adapter = sum(values.nbytes for values in lora.adapter_parameters(learner.draft).values())
    held = mx.get_active_memory() + kept + _ADAPTERS * adapter
    room = SAFETY * max(0, allowed.bytes - held)
    examples = {one.record_id: one for batch in batches for one in batch}.values()
    fits: list[Fit] = []
    for recompute in (False, True):
        fits.append(Fit(_cost(learner, recompute, batches, room, per_label), room, room, recompute))
        if all(fits[-1].takes([one]) for one in examples):
            return fits[-1]
    trained_on = [sum(len(one.labels) for one in map(fit.fitted, examples) if one) for fit in fits]
    if max(trained_on):
        return fits[trained_on.index(max(trained_on))]  # with one layer there is nothing to gain by computing again
    raise TrainingFailed(
        f"the models and what the teacher keeps take {memory.gigabytes(held)} GB of the {allowed} allowed, and what is "
        f"left fits no example, even with activations computed again; {ADVICE}"
    )


def _cost(learner: Learner, recompute: bool, batches: Batches, room: float, per_label: int) -> Cost:
    longest = max(len(one.inputs) for batch in batches for one in batch)
    most_labels = max(sum(len(one.labels) for one in batch) for batch in batches)
    before = learner.fit
    learner.fit = Fit(recompute=recompute)

    def probe(length: int, labels: int, piece: int) -> int | None:
        try:
            return learner.probe(length, labels, piece)
        except memory.REFUSALS as error:
            if not memory.is_out_of_memory(error):
                raise
            return None

    try:
        return measured(probe, longest, most_labels, room, learner.piece, per_label)
    finally:
        learner.fit = before
        memory.release()
