"""The curriculum: which micro-batches each step takes. Knows no model.

A batch plan of the failures alone says how many steps there are. Its first part is trained on as it is, so that the
draft is better within seconds. The rest comes in stages of equal length: each begins with new samples on the prompts
that failed (target samples, and on-policy samples of the draft as it is then), and goes through failures and samples
alike. The better the draft is, the more its own samples are like what the target accepts.

    steps   0 … failures alone … | stage 0: failures + samples | stage 1: failures + samples | … | N
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...config import Training
from .batch_plan import BatchPlan, Window, make_batch_plan
from .examples import Example

FIRST = 0.15  # of the steps, at least an epoch's, are on the failures alone

Enough = Callable[[], bool]
"""Asked again and again while samples are made: whether those that there are must do. May raise to stop."""
MakeSamples = Callable[[int, Enough], Sequence[Example]]
"""Gives the samples of a stage, counted from 0."""


@dataclass
class Curriculum:
    """A training's steps in order.

    Attributes:
        plan: of the failures alone.
        failures: what is trained on.
        pool: what replay is drawn from, by record id.
        settings: of the training.
        stages: how often there are new samples; 0 for a training on the failures alone.
        make_samples: gives them when their stage begins.
        steps: in all.
        begins: the step at which each stage begins; stages that would have no step are left out.
    """

    plan: BatchPlan
    failures: Sequence[Example]
    pool: Mapping[str, Example]
    settings: Training
    stages: int = 0
    make_samples: MakeSamples = lambda _stage, _enough: ()

    def __post_init__(self) -> None:
        self.steps = len(self.plan.windows)
        epoch = sum(window.epoch == 0 for window in self.plan.windows)
        first = max(epoch, math.ceil(FIRST * self.steps))
        begins = {first + (self.steps - first) * stage // self.stages for stage in range(self.stages)}
        self.begins = sorted(begin for begin in begins if begin < self.steps)
        self._latest = -1, self.plan  # the stage planned last, and its steps

    @property
    def foreseen(self) -> list[tuple[Example, ...]]:
        """The plan's micro-batches and, where samples will be made, one as long and with as many labels as theirs.

        A sample follows any of the prompts, and is at most as long as the longest output of a failure.
        """
        if not self.begins:
            return self.plan.micro_batches
        prompt = max(example.prompt_length for example in self.failures)
        labels = max(len(example.labels) for example in self.failures)
        longest = replace(
            self.failures[0], record_id="longest sample", ids=(0,) * (prompt + labels), prompt_length=prompt
        )
        rows = min(self.settings.batch_size, math.ceil(self.settings.batch_tokens / labels))
        return [*self.plan.micro_batches, (longest,) * rows]

    def window(self, step: int, enough: Enough) -> Window:
        """What step `step`, from 0, is made of. Where `enough` raises while samples are made, nothing has changed.

        Its epoch is the one that it would have without new samples.
        """
        return self._window(step, enough)

    def known_window(self, step: int) -> Window | None:
        """The window of a step; None behind the last one, and where samples are to be made first."""
        is_known = step < self.steps and self._stage(step) in (-1, self._latest[0])
        return self._window(step, lambda: False) if is_known else None

    def times_given(self, steps: int) -> Counter[str]:
        """How often each record is in what the first `steps` steps were made of, by id."""
        windows = (self._window(step, lambda: False) for step in range(steps))
        return Counter(e.record_id for window in windows for batch in window.micro_batches for e in batch)

    def _stage(self, step: int) -> int:
        """-1 is the part on the failures alone."""
        return sum(begin <= step for begin in self.begins) - 1

    def _window(self, step: int, enough: Enough) -> Window:
        stage = self._stage(step)
        begin = self.begins[stage] if stage >= 0 else 0
        return replace(self._plan_of(stage, enough).windows[step - begin], epoch=self.plan.windows[step].epoch)

    def _plan_of(self, stage: int, enough: Enough) -> BatchPlan:
        """The steps of one stage; the latest is kept."""
        if stage < 0:
            return self.plan
        if self._latest[0] != stage:
            begin, end = [*self.begins, self.steps][stage : stage + 2]
            epoch = (stage + 1) * self.plan.passes  # orders and draws that no earlier stage has
            fresh = [*self.failures, *self.make_samples(stage, enough)]
            self._latest = stage, make_batch_plan(fresh, self.pool, self.settings, end - begin, epoch)
        return self._latest[1]
