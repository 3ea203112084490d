"""The seconds that decoding takes on a machine, as others measure, keep and reckon with them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds on this machine: of one draft step, and of a target forward over k + 1 positions in `t_target[k]`."""

    t_draft: float
    t_target: tuple[float, ...]
