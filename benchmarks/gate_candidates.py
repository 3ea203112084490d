"""Candidates that change each source by a known number of tokens a round, with the noise of real ones.

The champion stands at the bare draft. On a source that gains, the candidate stands so far on the way from there to the
adapters that the acceptance length of the pool's domain rises by the gain at K; on another one its rounds at every K
are those of the bare draft, times one number that changes the acceptance length as wanted. The difference of the two
adapters lies on both, half and half, its sign at random. Knows nothing of models or of the gate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gate_worlds import LOSERS, Attempt, FloatArray, K, Pool

FIRST, SECOND = 0, 1  # the pool's domains
NAMES, SMALL = 3, 11  # names that share a loss, and the prompts of each


@dataclass(frozen=True)
class Part:
    """One source of a candidate: the pool's domain that its prompts come from, how many, and what they gain at K."""

    domain: int
    prompts: int
    change: float


Parts = tuple[Part, ...]
"""The sources of a candidate, in the order of their names."""


def on_sources(sources: int, prompts: int, effect: float, others: float) -> Parts:
    """So many sources of so many prompts each: the first gains, every other one changes as given."""
    return (Part(FIRST, prompts, effect), *[Part(SECOND, prompts, others)] * (sources - 1))


def under_small_names(prompts: int, effect: float, loss: float) -> Parts:
    """One source that gains, and a few names with too few prompts to be judged by themselves, which lose."""
    return (Part(FIRST, prompts, effect), *[Part(SECOND, SMALL, -loss)] * NAMES)


def candidate(pool: Pool, parts: Parts, rng: np.random.Generator) -> Attempt:
    """One candidate over prompts that are drawn with replacement."""
    made = [_source(pool, name, part, rng) for name, part in enumerate(parts)]
    return Attempt(*(np.concatenate([getattr(one, column) for one in made]) for column in Attempt.__dataclass_fields__))


def loses_on_a_few(pool: Pool, prompts: int, share: float, rng: np.random.Generator) -> Attempt:
    """One source that loses this share of its acceptance length, all of it on one prompt in ten or so."""
    epoch = drawn(pool.of(SECOND), prompts, rng)
    more = (1 / (1 - share) - 1) / LOSERS
    return with_noise(epoch, epoch.base, epoch.base * np.where(rng.random(prompts) < LOSERS, 1 + more, 1)[:, None], rng)


def loses_evenly(pool: Pool, prompts: int, share: float, rng: np.random.Generator) -> Attempt:
    """One source that loses this share of its acceptance length, the same share on every prompt."""
    epoch = drawn(pool.of(SECOND), prompts, rng)
    return with_noise(epoch, epoch.base, epoch.base / (1 - share), rng)


def drawn(pool: Pool, prompts: int, rng: np.random.Generator) -> Pool:
    """So many prompts of all, with replacement."""
    return pool.take(rng.integers(0, len(pool.tokens), prompts))


def with_noise(epoch: Pool, champion: FloatArray, candidate: FloatArray, rng: np.random.Generator) -> Attempt:
    """Rounds (n, K) of both with the difference of the two adapters between them, from 1 to K + 1 tokens a round."""
    half = rng.choice([-0.5, 0.5], len(epoch.tokens))[:, None] * (epoch.first - epoch.second)
    least, most = epoch.tokens[:, None] / np.arange(2, epoch.base.shape[1] + 2), epoch.tokens[:, None]
    return Attempt(
        epoch.source, epoch.tokens, np.clip(champion + half, least, most), np.clip(candidate - half, least, most)
    )


def _source(pool: Pool, name: int, part: Part, rng: np.random.Generator) -> Attempt:
    domain = pool.of(part.domain)
    epoch = drawn(domain, part.prompts, rng)
    rounds = on_the_way(epoch, way_to(domain, part.change)) if part.change > 0 else scaled(domain, epoch, part.change)
    made = with_noise(epoch, epoch.base, rounds, rng)
    return Attempt(np.full(part.prompts, name), made.tokens, made.champion, made.candidate)


def scaled(domain: Pool, epoch: Pool, change: float) -> FloatArray:
    """(n, K) rounds of the bare draft times what changes the acceptance length of the domain by `change` at K."""
    length = domain.tokens.sum() / domain.base[:, K - 1].sum()
    rounds: FloatArray = epoch.base * length / (length + change)
    return rounds


def on_the_way(pool: Pool, way: float) -> FloatArray:
    """(n, K) rounds between the bare draft (0) and the middle of the two adapters (1)."""
    return pool.base + way * ((pool.first + pool.second) / 2 - pool.base)


def way_to(pool: Pool, effect: float) -> float:
    """How far on the way the pool's acceptance length has risen by `effect`."""
    base, middle = (on_the_way(pool, way)[:, K - 1].sum() for way in (0.0, 1.0))
    tokens = pool.tokens.sum()
    return float((base - tokens / (tokens / base + effect)) / (base - middle))
