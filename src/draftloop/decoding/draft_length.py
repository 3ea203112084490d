"""The adaptive draft length: the K that maximises expected tokens/s, by a latency profile and a running acceptance.

Pure: seconds and counts in, K out. A round of K costs K draft steps and one target pass over K + 1 positions, and is
expected to emit L(K) = 1 + Σ_{a=1..K} Π_{d<=a} α_d tokens, α_d being the chance that proposal d is accepted where d − 1
were. The policy maximises L(K) over the cost; K = 0, a plain step, always emits one token.

α_d is the fraction accepted among the proposals that were verified at depth d. Each round counts (1 − 1/MEMORY) as much
as the next one, and the estimate at depth d − 1 counts as PRIOR rounds: so depths that are not tried follow those that
are. At K = 0 nothing is learned. So a round drafts now and then all the same, as often as the time that it is expected
to lose stays PROBING of the whole: more often where the draft is closer to break-even. After such a round that accepts
everything, the next round drafts too, so a draft that has become good is soon in use.

An output may end before deep proposals are known, or before the next drafting round is due: so what is known is carried
from output to output, as `Experience`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MEMORY = 96  # rounds
PRIOR = 4.0  # rounds
FIRST_GUESS = 0.7  # of α_1, before anything is known
MARGIN = 0.01  # by which plain steps must look better, or noise at the break-even point would end all learning
PROBING = 0.01  # of the time at K = 0 may be lost to rounds that draft


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """Seconds on this machine: of one draft step, and of a target forward over k + 1 positions in `t_target[k]`."""

    t_draft: float
    t_target: tuple[float, ...]


@dataclass(frozen=True)
class Experience:
    """What rounds have shown, by depth 1, 2, …, each round weighing less than the next.

    Attributes:
        judged: number of proposals that were verified there, in [0, MEMORY].
        kept: those of them that were kept.
        plain_steps: made since the last round that drafted.

    Raises:
        ValueError: other numbers.
    """

    judged: tuple[float, ...] = ()
    kept: tuple[float, ...] = ()
    plain_steps: int = 0

    def __post_init__(self) -> None:
        counts = zip(self.judged, self.kept, strict=True)
        possible = all(0 <= kept <= verified <= MEMORY for verified, kept in counts)
        if not possible or self.plain_steps < 0:
            raise ValueError(f"found {self}: expected 0 <= kept <= judged <= {MEMORY} at every depth, 0 <= plain_steps")


class AdaptiveDraftLength:
    """Chooses K round by round.

    Args:
        profile: seconds of a draft step, and of a target pass over 1, 2, … positions.
        most: greatest K; `profile` reaches at least as far.
        experience: of the outputs before this one, to any depth.

    Raises:
        ValueError: `profile` has no time for `most` + 1 positions.
    """

    def __init__(self, profile: LatencyProfile, most: int, experience: Experience = Experience()) -> None:
        if len(profile.t_target) <= most:
            raise ValueError(f"the latency profile reaches K = {len(profile.t_target) - 1}: expected {most}")
        self._seconds = [profile.t_target[0], *(k * profile.t_draft + profile.t_target[k] for k in range(1, most + 1))]
        self._lag = profile.t_draft  # a draft that sat out plain steps reads them in about a step more
        missing = [0.0] * (most - len(experience.judged))
        self._verified, self._kept = ([*values, *missing] for values in (experience.judged, experience.kept))
        self._plain = experience.plain_steps
        self._again = False  # a round of which everything was kept is followed by another one

    @property
    def experience(self) -> Experience:
        """What is known by now, for the output after this one."""
        return Experience(tuple(self._verified), tuple(self._kept), self._plain)

    def choose(self) -> int:
        """K of the next round."""
        speeds = self.speeds()
        k = _best_drafting(speeds)
        is_faster = speeds[0] <= (1 + MARGIN) * speeds[k]
        return k if is_faster or self._again or self._plain >= self._wait(speeds, k) else 0

    def plain_steps(self) -> int:
        """Plain steps until the next round that drafts, to learn what the draft is worth."""
        speeds = self.speeds()
        return max(1, self._wait(speeds, _best_drafting(speeds)) - self._plain)

    def observe(self, drafted: int, accepted: int) -> None:
        """Learn from a round; a plain step says nothing."""
        if drafted == 0:
            self._plain += 1
            return
        for depth in range(len(self._verified)):
            self._verified[depth] *= 1 - 1 / MEMORY
            self._kept[depth] *= 1 - 1 / MEMORY
        for depth in range(min(accepted + 1, drafted)):
            self._verified[depth] += 1
            self._kept[depth] += depth < accepted
        self._plain, self._again = 0, accepted == drafted

    def _wait(self, speeds: list[float], k: int) -> int:
        """Plain steps between rounds of K drafts that are expected to lose PROBING of the time."""
        step = self._seconds[0]
        lost = self._seconds[k] + self._lag - speeds[k] * self._seconds[k] * step
        return max(1, math.ceil(lost / (PROBING * step)))

    def speeds(self) -> list[float]:
        """Expected tokens per second for K = 0, 1, …"""
        length, reached, chance = 1.0, 1.0, FIRST_GUESS
        speeds = [1.0 / self._seconds[0]]
        for kept, verified, seconds in zip(self._kept, self._verified, self._seconds[1:], strict=False):
            chance = (kept + PRIOR * chance) / (verified + PRIOR)
            reached *= chance
            length += reached
            speeds.append(length / seconds)
        return speeds


def _best_drafting(speeds: list[float]) -> int:
    """The K >= 1 of the greatest speed; the smallest of equals."""
    return max(range(1, len(speeds)), key=speeds.__getitem__)
