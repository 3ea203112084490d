"""Which micro-batches each step takes: the failures first, later also what more was written on their prompts.

A plan of the failures alone says how many steps there are. Its first part is trained on as it is, so that the draft is
better within seconds. The rest comes in stages of equal length: each begins with new texts on the prompts that failed,
and goes through failures and texts alike. The draft's own are of the draft as it is then: the better it is, the more
what it writes is like what the target will let pass. Knows no model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ...config import Training
from .batch_plan import BatchPlan, Window, make_batch_plan
from .examples import Example

FIRST = 0.15  # of the steps, at least an epoch's, are on the failures alone

Enough = Callable[[], bool]
"""Asked again and again while texts are made: whether those that there are must do. May raise to stop."""
More = Callable[[int, Enough], Sequence[Example]]
"""Gives the texts of a stage, counted from 0."""


class Curriculum:
    """A training's steps in order.

    Args:
        plan: of the failures alone.
        failures: what is trained on.
        pool: what replay is drawn from, by record id.
        settings: of the training.
        stages: how often there are new texts; 0 for a training on the failures alone.
        more: gives them when their stage begins.
    """

    def __init__(
        self,
        plan: BatchPlan,
        failures: Sequence[Example],
        pool: Mapping[str, Example],
        settings: Training,
        stages: int = 0,
        more: More = lambda _stage, _enough: (),
    ) -> None:
        self.plan = plan
        self._failures, self._pool, self._settings, self._more = failures, pool, settings, more
        self.steps = len(plan.windows)
        self.begins = _begins(plan, stages)
        self._latest: tuple[int, BatchPlan] | None = None

    @property
    def foreseen(self) -> list[tuple[Example, ...]]:
        """The plan's micro-batches and, where texts will be written, one as long and with as many labels as theirs.

        A text follows any of the prompts, and is at most as long as the longest output of a failure.
        """
        if not self.begins:
            return self.plan.micro_batches
        prompt = max(example.prompt_length for example in self._failures)
        labels = max(len(example.labels) for example in self._failures)
        text = replace(self._failures[0], record_id="longest text", ids=(0,) * (prompt + labels), prompt_length=prompt)
        rows = min(self._settings.batch_size, math.ceil(self._settings.batch_tokens / labels))
        return [*self.plan.micro_batches, (text,) * rows]

    def window(self, step: int, enough: Enough) -> Window:
        """What step `step`, from 0, is made of. Where `enough` raises while texts are made, nothing has changed.

        Its epoch is the one that it would have without new texts.
        """
        return self._planned(step, self._stage(step), enough)

    def known_window(self, step: int) -> Window | None:
        """The window of a step; None behind the last one, and where texts are to be written first."""
        stage = self._stage(step)
        if step >= self.steps or (stage >= 0 and (self._latest is None or self._latest[0] != stage)):
            return None
        return self._planned(step, stage, lambda: False)

    def times_given(self, steps: int) -> Counter[str]:
        """How often each record is in what the first `steps` steps were made of, by id."""
        windows = list(self.plan.windows[: min([steps, *self.begins])])
        for stage, begin in enumerate(self.begins):
            if begin < steps:
                windows += self._plan(stage, lambda: False).windows[: steps - begin]
        return Counter(e.record_id for window in windows for batch in window.micro_batches for e in batch)

    def _stage(self, step: int) -> int:
        """-1 is the part on the failures alone."""
        return sum(begin <= step for begin in self.begins) - 1

    def _planned(self, step: int, stage: int, enough: Enough) -> Window:
        planned = self.plan.windows[step]
        if stage < 0:
            return planned
        return replace(self._plan(stage, enough).windows[step - self.begins[stage]], epoch=planned.epoch)

    def _plan(self, stage: int, enough: Enough) -> BatchPlan:
        """The steps of one stage; the latest is kept."""
        if self._latest is None or self._latest[0] != stage:
            begin, end = [*self.begins, self.steps][stage : stage + 2]
            epoch = (stage + 1) * self.plan.passes  # orders and draws that no earlier stage has
            fresh = [*self._failures, *self._more(stage, enough)]
            self._latest = stage, make_batch_plan(fresh, self._pool, self._settings, end - begin, epoch)
        return self._latest[1]


def _begins(plan: BatchPlan, stages: int) -> list[int]:
    """The step at which each stage begins; stages that would have none are left out."""
    steps = len(plan.windows)
    epoch = sum(window.epoch == 0 for window in plan.windows)
    first = max(epoch, math.ceil(FIRST * steps))
    begins = [first + (steps - first) * stage // stages for stage in range(stages)]
    return sorted({begin for begin in begins if begin < steps})
