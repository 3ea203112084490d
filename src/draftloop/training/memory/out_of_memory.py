"""The out-of-memory fallback: steps and validations within a budget, in smaller parts where they took too much.

MLX either says that it is out of memory, by an error that gave the work up, or has taken more than allowed by the time
anybody can look: a CPU says nothing until it is too late. Each fallback is reported once. Knows no plan but its
micro-batches.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import mlx.core as mx

from ...errors import TrainingFailed
from ...models import adapter as lora
from ...runtime import memory
from ..dataset.examples import Example
from ..step import Learner
from .fitting import SAFETY, Fit, measure_cost

Result = TypeVar("Result")
Batches = Sequence[Sequence[Example]]

_ADAPTERS = 6  # of its size: the best weights, a window's gradients and their mean, and what a step began with
ADVICE = (
    "take training.teacher logged, lower data.max_output_length, data.max_prompt_length, training.lora.rank or "
    "training.teacher_memory_mb, close other programs, or allow more with training.memory (and retrain.max_memory_gb)"
)


@dataclass
class OutOfMemoryFallback:
    """Does a learner's work, and changes its fit.

    Attributes:
        learner: whose fit is changed.
        everything: the micro-batches that are trained on, but for on-policy and target samples still to be made.
        budget: bytes that MLX may hold; None is no bound.
        say: told of each fallback.
    """

    learner: Learner
    everything: Batches
    budget: memory.Budget | None
    say: Callable[[str], None]
    _peak: int = field(default=0, init=False)
    _warned: bool = field(default=False, init=False)

    @property
    def peak(self) -> int:
        """The most bytes that MLX has held since the first work."""
        return max(self._peak, int(mx.get_peak_memory()))

    def run(self, work: Callable[[], Result], batches: Batches, *, droppable: bool) -> Result:
        """Do it, again and again in smaller parts while MLX is out of memory.

        Args:
            work: on these micro-batches; where it raises, it has changed nothing.
            batches: whose parts are made smaller.
            droppable: whether the end of an example may be left out where it does not fit alone.

        Raises:
            TrainingFailed: no smaller parts are left to try.
        """
        self._peak = self.peak
        mx.reset_peak_memory()
        while True:
            try:
                result = work()
                break
            except memory.REFUSALS as error:
                if not memory.is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())
            self._after_error(reason, batches, droppable)  # not above: the error holds on to all of the work's arrays
        self._after_success(batches)
        return result

    def _after_error(self, reason: str, batches: Batches, droppable: bool) -> None:
        gc.collect()
        memory.release()
        self._peak = self.peak
        mx.reset_peak_memory()  # what was given up is not what the next try takes
        stuck = not droppable and self.learner.fit.is_smallest(batches)
        fit = None if stuck else self.learner.fit.fallback(batches, cut=droppable)
        if fit is None or not any(fit.fitted(example) for batch in self.everything for example in batch):
            raise TrainingFailed(
                f"one example alone, with activations computed again, does not fit into memory ({reason}); {ADVICE}"
            )
        self.learner.fit = fit
        self.say(f"out of memory ({reason}); trying again: {fit.describe(self.everything)}")

    def _after_success(self, batches: Batches) -> None:
        peak, allowed = mx.get_peak_memory(), self.budget
        if allowed is None or peak <= allowed.bytes:
            return
        taken = f"{memory.gigabytes(peak)} GB were taken, and {allowed} are allowed"
        fit = None if self.learner.fit.is_smallest(batches) else self.learner.fit.fallback(batches)
        if fit is not None:
            self.learner.fit = fit
            self.say(f"{taken}; from now on, {fit.describe(self.everything)}")
        elif allowed.strict:
            raise TrainingFailed(f"{taken}, one example at a time; {ADVICE}")
        elif not self._warned:
            self._warned = True
            self.say(f"{taken}, one example at a time; going on as long as it works")


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
    # 1. The room that models, teacher and adapter leave.
    adapter = sum(values.nbytes for values in lora.adapter_parameters(learner.draft).values())
    held = mx.get_active_memory() + kept + _ADAPTERS * adapter
    room = SAFETY * max(0, allowed.bytes - held)
    examples = list({example.record_id: example for batch in batches for example in batch}.values())
    longest = max(len(example.inputs) for example in examples)
    most_labels = max(sum(len(example.labels) for example in batch) for batch in batches)

    # 2. What a pass costs, with activations kept; where not every example fits, with activations computed again.
    fits: list[Fit] = []
    before = learner.fit
    for recompute in (False, True):
        learner.fit = Fit(recompute=recompute)
        try:
            cost = measure_cost(learner.probe, longest, most_labels, room, learner.piece, per_label)
        finally:
            learner.fit = before
            memory.release()
        fits.append(Fit(cost, room, room, recompute))
        if all(fits[-1].takes([example]) for example in examples):
            return fits[-1]

    # 3. Neither takes every example whole: the one that trains on more labels. Of one layer, nothing is recomputed.
    labels = [sum(len(cut.labels) for cut in map(fit.fitted, examples) if cut) for fit in fits]
    if max(labels):
        return fits[labels.index(max(labels))]
    raise TrainingFailed(
        f"the models and what the teacher keeps take {memory.gigabytes(held)} GB of the {allowed} allowed, and what is "
        f"left fits no example, even with activations computed again; {ADVICE}"
    )
