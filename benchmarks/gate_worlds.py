"""Candidates that are no better than the champion: what a gate must not promote.

All are made from the real scores of one pool of prompts under the bare draft and two adapters that were trained alike.
The two adapters differ as two candidates do, and neither is the better one: swapping their labels prompt by prompt is a
null with the noise of real candidates. Prompts are drawn from the pool with replacement, half from each source, and
each draw counts as a prompt of its own. Knows nothing of models or of the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

ATTEMPTS = 5
K = 4  # draft length at which champion and candidate are compared
KEPT_LABELS = 0.9  # share of prompts on which correlated attempts agree with their common one
SPREAD = 0.1  # scale of the heavy-tailed noise, as a share of the rounds
LONG_SHARE, LONG_FACTORS = 0.1, (10, 50)  # of the prompts; on their tokens and rounds
LOSERS, MOST_GAIN = 0.1, 0.03  # share of the prompts that lose much; what the others gain at most, as a share of rounds
LEAST_ROOM = 0.2  # of a prompt that may be lopsided: share of its rounds that it may lose


@dataclass(frozen=True)
class Pool:
    """Scored prompts: source (n,) int, tokens (n,), rounds (n, K) at K = 1, 2, … under three drafts."""

    source: npt.NDArray[np.int64]
    tokens: FloatArray
    base: FloatArray
    first: FloatArray
    second: FloatArray

    def take(self, rows: npt.NDArray[np.int64]) -> Pool:
        """The prompts of these rows."""
        return Pool(self.source[rows], self.tokens[rows], self.base[rows], self.first[rows], self.second[rows])

    def of(self, source: int) -> Pool:
        """The prompts of one source."""
        return self.take(np.flatnonzero(self.source == source))


@dataclass(frozen=True)
class Attempt:
    """One candidate to judge: source (n,) int, tokens (n,), rounds (n, K) of champion and candidate."""

    source: npt.NDArray[np.int64]
    tokens: FloatArray
    champion: FloatArray
    candidate: FloatArray


@dataclass(frozen=True)
class Lopsidedness:
    """In these sources a `share` of the prompts loses, all others gain; both as shares of a prompt's rounds."""

    sources: tuple[int, ...]
    share: float
    gain: float
    loss: float


World = Callable[[Pool, int, np.random.Generator], Iterator[Attempt]]
"""Five attempts on one held-out epoch of so many prompts."""


def draw(pool: Pool, prompts: int, rng: np.random.Generator) -> Pool:
    """So many prompts with replacement, as evenly from every source as they go."""
    sources = np.unique(pool.source)
    rows = [
        rng.choice(np.flatnonzero(pool.source == source), prompts // len(sources) + (i < prompts % len(sources)))
        for i, source in enumerate(sources)
    ]
    return pool.take(np.concatenate(rows))


def labelled(epoch: Pool, swapped: npt.NDArray[np.bool_]) -> Attempt:
    """The two adapters as champion and candidate, the other way round where `swapped` (n,)."""
    where = swapped[:, None]
    return Attempt(
        epoch.source,
        epoch.tokens,
        champion=np.where(where, epoch.second, epoch.first),
        candidate=np.where(where, epoch.first, epoch.second),
    )


def shifted(attempt: Attempt, share: FloatArray) -> Attempt:
    """The candidate better by a `share` (n,) of each prompt's rounds, at every K, half of it taken from each side."""
    half = share[:, None] / 2
    return replace(attempt, champion=attempt.champion * (1 + half), candidate=attempt.candidate * (1 - half))


def room(epoch: Pool) -> FloatArray:
    """(n,) by what share of its rounds a prompt may gain or lose before 1 ≤ tokens a round ≤ K + 1 fails for some K."""
    lengths = epoch.tokens[:, None] / np.stack([epoch.first, epoch.second])  # (2, n, K)
    most = np.arange(2, lengths.shape[2] + 2)
    limits: FloatArray = 2 * np.minimum(lengths - 1, 1 - lengths / most).clip(min=0).min(axis=(0, 2))
    return limits


def equal(pool: Pool, prompts: int, rng: np.random.Generator) -> Iterator[Attempt]:
    """Labels of real scores at random, anew at each attempt."""
    epoch = draw(pool, prompts, rng)
    for _ in range(ATTEMPTS):
        yield labelled(epoch, rng.random(prompts) < 0.5)


def correlated(pool: Pool, prompts: int, rng: np.random.Generator) -> Iterator[Attempt]:
    """Labels at random once, and nine in ten of them kept at each attempt: candidates that resemble each other."""
    epoch = draw(pool, prompts, rng)
    common = rng.random(prompts) < 0.5
    for _ in range(ATTEMPTS):
        fresh = rng.random(prompts) < 0.5
        yield labelled(epoch, np.where(rng.random(prompts) < KEPT_LABELS, common, fresh))


def heavy_tailed(pool: Pool, prompts: int, rng: np.random.Generator) -> Iterator[Attempt]:
    """One real score for both, and symmetric noise of Student's t with two degrees of freedom between them."""
    epoch = draw(pool, prompts, rng)
    same, limit = replace(epoch, second=epoch.first), room(epoch)
    for _ in range(ATTEMPTS):
        noise = np.clip(SPREAD * rng.standard_t(2, prompts), -limit, limit)
        yield shifted(labelled(same, np.zeros(prompts, dtype=bool)), noise)


def length_skewed(pool: Pool, prompts: int, rng: np.random.Generator) -> Iterator[Attempt]:
    """As `equal`, but every tenth prompt or so is 10 to 50 times as long and decides nearly alone."""
    factor = np.where(rng.random(prompts) < LONG_SHARE, rng.integers(*LONG_FACTORS, prompts, endpoint=True), 1)
    for attempt in equal(pool, prompts, rng):
        yield Attempt(
            attempt.source,
            attempt.tokens * factor,
            champion=attempt.champion * factor[:, None],
            candidate=attempt.candidate * factor[:, None],
        )


def lopsided(pool: Pool, prompts: int, rng: np.random.Generator) -> Iterator[Attempt]:
    """A little better on nine prompts in ten, much worse on the tenth wherever it lies, and no better on average."""
    yield from _lopsided(pool, prompts, lopsidedness(pool, one_source=False), rng)


def lopsided_source(pool: Pool, prompts: int, rng: np.random.Generator) -> Iterator[Attempt]:
    """As `lopsided`, but all that is much worse lies in the last source."""
    yield from _lopsided(pool, prompts, lopsidedness(pool, one_source=True), rng)


def with_room(pool: Pool) -> Pool:
    """The prompts that can lose much; a single one that cannot would leave nothing to gain or to lose."""
    return pool.take(np.flatnonzero(room(pool) >= LEAST_ROOM))


def lopsidedness(pool: Pool, *, one_source: bool) -> Lopsidedness:
    """Gain and loss that add up to no rounds at K, drawn evenly from the sources of the pool `with_room`."""
    pool = with_room(pool)
    sources = np.unique(pool.source)
    hit = sources[-1:] if one_source else sources
    rounds = {int(s): float((pool.of(s).first + pool.of(s).second)[:, K - 1].mean()) for s in sources}
    share = LOSERS * len(sources) / len(hit)
    loss_for_gain = sum(rounds.values()) / (share * sum(rounds[int(s)] for s in hit)) - 1
    gain = min(MOST_GAIN, float(room(pool).min()) / loss_for_gain)
    return Lopsidedness(tuple(int(s) for s in hit), share, gain, loss_for_gain * gain)


def _lopsided(pool: Pool, prompts: int, how: Lopsidedness, rng: np.random.Generator) -> Iterator[Attempt]:
    epoch = draw(with_room(pool), prompts, rng)
    for _ in range(ATTEMPTS):
        loses = np.isin(epoch.source, how.sources) & (rng.random(prompts) < how.share)
        yield shifted(labelled(epoch, rng.random(prompts) < 0.5), np.where(loses, -how.loss, how.gain))


NULLS: dict[str, World] = {
    "equal": equal,
    "correlated attempts": correlated,
    "heavy tails": heavy_tailed,
    "a few long texts": length_skewed,
}
BEYOND: dict[str, World] = {"lopsided": lopsided, "lopsided, in one source": lopsided_source}
