"""How a training fits beside the server: with the target once more or without, and what a request does to it. Pure.

Half of what the server's models leave of the memory is for requests, and half for the child. Where its half does not
hold the target, the child does without. Where it does not hold a training of the draft either, the child takes all that
is left, and the first request ends it, to have that back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..runtime.memory import GIGABYTE, MEGABYTE, gigabytes

WORK = 500 * MEGABYTE  # of a training beside the models: activations, gradients, teacher probabilities
DRAFTS = 3  # times the draft: its weights, and what an adapter of every matrix and its optimizer may come to


@dataclass(frozen=True)
class ChildPlan:
    """How a child works.

    Attributes:
        has_target: whether it loads the target.
        memory_gb: GB that MLX may hold in it.
        is_ended: whether a request ends it; else a request stops it, and it goes on where it was.
    """

    has_target: bool
    memory_gb: float
    is_ended: bool

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of `retrain`."""
        without = () if self.has_target else ("--without-target",)
        return ("--memory-gb", f"{self.memory_gb:.3f}", *without)


def plan_child(left: float, target: int, draft: int, limit: float | Literal["auto"] = "auto") -> ChildPlan | None:
    """How a child works; None where memory does not hold a training at all.

    Args:
        left: bytes that the server's models leave of the memory.
        target, draft: bytes of their weights in memory.
        limit: GB that a training may take by the configuration; `auto` is none beside these.
    """
    most = math.inf if limit == "auto" else limit * GIGABYTE
    half, whole = min(left / 2, most), min(left, most)
    without = DRAFTS * draft + WORK
    if half >= target + without:
        return ChildPlan(has_target=True, memory_gb=half / GIGABYTE, is_ended=False)
    if half >= without:
        return ChildPlan(has_target=False, memory_gb=half / GIGABYTE, is_ended=False)
    if whole >= without:
        return ChildPlan(has_target=False, memory_gb=whole / GIGABYTE, is_ended=True)
    return None


def least_memory(draft: int) -> str:
    """What a training takes at least, in words."""
    return f"{gigabytes(DRAFTS * draft + WORK)} GB"
