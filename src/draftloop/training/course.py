"""Which micro-batches each step takes: the failures first, later also what more was asked on their prompts.

A plan of the failures alone says how many steps there are. Its first part is trained on as it is, so that the draft is
better within seconds; then come the new texts (which take the target a while, and which the draft writes better by
then), and the rest of the steps goes through failures and new texts alike. Knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..config import Training
from .examples import Example
from .plan import Plan, Window, make_plan

FIRST = 0.15  # of the steps, at least an epoch's, are on the failures alone

Check = Callable[[], None]
More = Callable[[Check], Sequence[Example]]
"""Gives the new texts; calls its argument again and again, which may raise to stop."""


class Course:
    """A training's steps in order.

    Args:
        failures: what is trained on.
        pool: what replay is drawn from, by record id.
        settings: of the training.
        more: gives the new texts when they are needed for the first time; None for a training without them.
    """

    def __init__(
        self,
        failures: Sequence[Example],
        pool: Mapping[str, Example],
        settings: Training,
        more: More | None = None,
    ) -> None:
        self._failures, self._pool, self._settings, self._more = failures, pool, settings, more
        self.plan: Plan = make_plan(failures, pool, settings)
        self.steps = len(self.plan.windows)
        epoch = sum(window.epoch == 0 for window in self.plan.windows)
        self.turn = self.steps if more is None else min(self.steps, max(epoch, math.ceil(FIRST * self.steps)))
        self._later: Plan | None = None

    def window(self, step: int, check: Check) -> Window:
        """What step `step`, from 0, is made of. `check` may raise while texts are made; nothing has changed then."""
        if step < self.turn or self._more is None:
            return self.plan.windows[step]
        if self._later is None:
            fresh = [*self._failures, *self._more(check)]
            epoch = self.plan.windows[self.turn - 1].epoch + 1
            self._later = make_plan(fresh, self._pool, self._settings, self.steps - self.turn, epoch)
        return self._later.windows[step - self.turn]

    def record_ids(self, steps: int) -> set[str]:
        """Ids of what the first `steps` steps were made of; new texts that nobody asked for yet are not among them."""
        windows = [*self.plan.windows[: min(steps, self.turn)]]
        if self._later is not None and steps > self.turn:
            windows += self._later.windows[: steps - self.turn]
        return {example.record_id for window in windows for batch in window.micro_batches for example in batch}
