"""How often a promoted draft is rolled back: new held-out prompts come in, and the real looks are made as they are due.

Every source sends from one to five prompts at a time. After each time `looks.due` says what is to be looked at, and
`look_test.compare_with_previous` decides. The draft in use stands in an attempt as the champion, the one before it as
the candidate. False rollbacks are counted with an alarm of drift that stands all the time, so that every check is made
as soon as it may be; the rollbacks of a draft that is worse are counted without any alarm. Where a draft is not even
seen to lose what is tolerated, p is a half or more, and the test is not asked: the counts are those of asking it. Nor
is `looks.due`, where there are fewer new prompts than any look takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from gate_candidates import FIRST, SECOND, drawn, with_noise
from gate_rates import SETTINGS, rate, texts_of
from gate_worlds import SPREAD, Attempt, K, Pool, labelled, room, shifted

from draftloop.evaluation.looks import Kind, NewOutput, Watching, compare_with_previous, due_looks
from draftloop.evaluation.paired_rounds import ScoredOutput

AT_A_TIME = (1, 5)  # new prompts of a source
MOST, SOON = 400, 200  # new prompts of a source that false rollbacks are counted over, and that a loss may take
LOSS = 0.06  # of the acceptance length

Draft = Callable[[Pool, int, np.random.Generator], Attempt]
"""So many prompts of one source, under the draft in use and the one before it."""


@dataclass(frozen=True)
class Rollback:
    """What brought it about, and the new held-out prompts by then: of the unit that loses (the first), and of all."""

    kind: Kind
    unit: int
    all: int


def equal(domain: Pool, prompts: int, rng: np.random.Generator) -> Attempt:
    """The labels of the two adapters at random."""
    return labelled(drawn(domain, prompts, rng), rng.random(prompts) < 0.5)


def heavy_tailed(domain: Pool, prompts: int, rng: np.random.Generator) -> Attempt:
    """One adapter twice, and symmetric noise of Student's t with two degrees of freedom between them."""
    epoch = drawn(domain, prompts, rng)
    limit, same = room(epoch), replace(epoch, second=epoch.first)
    noise = np.clip(SPREAD * rng.standard_t(2, prompts), -limit, limit)
    return shifted(labelled(same, np.zeros(prompts, dtype=bool)), noise)


def losing(share: float) -> Draft:
    """The draft in use has an acceptance length that is lower by this share."""

    def made(domain: Pool, prompts: int, rng: np.random.Generator) -> Attempt:
        epoch = drawn(domain, prompts, rng)
        middle = (epoch.first + epoch.second) / 2
        return with_noise(epoch, middle / (1 - share), middle, rng)

    return made


NO_WORSE: dict[str, Draft] = {
    "equal": equal,
    "heavy tails": heavy_tailed,
    "2% worse everywhere": losing(SETTINGS.rollback_drop_share),
}


def life(
    outputs: list[list[ScoredOutput]], rng: np.random.Generator, *, alarm: bool, most: int, seed: int
) -> Rollback | None:
    """The looks at one promotion until it is rolled back, or until some source has more than `most` new prompts.

    Args:
        outputs: of every source, in the order in which they come.
        rng: says how many come at a time.
        alarm: whether drift raises one all the time.
        most: prompts of one source.
        seed: of the tests.
    """
    names = tuple(str(source) for source in range(len(outputs)))
    watching = Watching(
        sequence=1,
        champion="v1",
        previous=None,
        sources=names,
        mark=(),
        least=SETTINGS.min_heldout_prompts,
        looks=SETTINGS.looks,
        alpha=SETTINGS.rollback_alpha,
    )
    counts, new, texts = [0] * len(outputs), list[NewOutput](), dict[str, ScoredOutput]()
    while True:
        for source, name in enumerate(names):
            before, counts[source] = counts[source], counts[source] + int(rng.integers(*AT_A_TIME, endpoint=True))
            for i in range(before, counts[source]):
                texts[f"{name}-{i}"] = replace(outputs[source][i], group=f"{name}-{i}", source=name)
                new.append(NewOutput(f"{name}-{i}", f"{name}-{i}", name))
        if max(counts) > most:
            return None
        if not may_be_due(watching, counts):
            continue
        for look in due_looks(watching, new, alarm=alarm):
            scored = [texts[one] for one in look.record_ids]
            if len(scored) > SETTINGS.max_heldout_generations:
                rows = rng.choice(len(scored), SETTINGS.max_heldout_generations, replace=False)
                scored = [scored[row] for row in rows]
            if seen_to_lose(scored) and compare_with_previous(scored, K, look, SETTINGS, seed).rolls_back:
                return Rollback(look.kind, counts[0], sum(counts))
            watching = replace(watching, made=(*watching.made, replace(look, p_value=1.0, record_ids=())))


def may_be_due(watching: Watching, counts: list[int]) -> bool:
    """Whether there are new prompts enough for a next look at some source, or for a next check."""
    made = Counter((look.kind, look.unit) for look in watching.made)
    fewest = [min(made["look", name], made["check", name]) for name in watching.sources]
    enough = any(count >= watching.least * 2**number for count, number in zip(counts, fewest, strict=True))
    return enough or sum(counts) >= watching.least * 2 ** made["check of all", None]


def seen_to_lose(texts: list[ScoredOutput]) -> bool:
    """Whether more is lost on these outputs, proven or not, than the share that is tolerated."""
    ours, before = (
        sum(text.champion_rounds[K - 1] for text in texts),
        sum(text.candidate_rounds[K - 1] for text in texts),
    )
    return ours > before / (1 - SETTINGS.rollback_drop_share)


def stream(pool: Pool, drafts: list[Draft], domains: list[int], most: int, rng: np.random.Generator) -> list[Any]:
    """What will come of every source."""
    number = most + AT_A_TIME[1]
    attempts = [draft(pool.of(domain), number, rng) for draft, domain in zip(drafts, domains, strict=True)]
    return [texts_of(replace(one, champion=one.champion[:, :K], candidate=one.candidate[:, :K])) for one in attempts]


def false_rollbacks(pool: Pool, kind: str, sources: int, number: int, seed: int) -> dict[str, Any]:
    """Promotions of a draft that is no worse which are rolled back, by looks or by checks."""
    rng = np.random.default_rng([seed, sources, *kind.encode()])
    domains = [FIRST, *[SECOND] * (sources - 1)]
    by: dict[Kind, int] = {"look": 0, "check": 0, "check of all": 0}
    for i in range(number):
        outputs = stream(pool, [NO_WORSE[kind]] * sources, domains, MOST, rng)
        ended = life(outputs, rng, alarm=True, most=MOST, seed=i)
        if ended is not None:
            by[ended.kind] += 1
    parts = {
        "by_look": asdict(rate(by["look"], number)),
        "by_check": asdict(rate(by["check"] + by["check of all"], number)),
    }
    return {
        "kind": kind,
        "sources": sources,
        "promotions": number,
        "all": asdict(rate(sum(by.values()), number)),
    } | parts


def rollbacks_of_a_loss(pool: Pool, domain: int, sources: int, number: int, seed: int) -> dict[str, Any]:
    """Promotions of a draft that loses in the first source alone which are rolled back, and how soon."""
    rng = np.random.default_rng([seed, sources, domain])
    others = SECOND if domain == FIRST else FIRST
    drafts = [losing(LOSS), *[equal] * (sources - 1)]
    ends = []
    for i in range(number):
        outputs = stream(pool, drafts, [domain, *[others] * (sources - 1)], SOON, rng)
        ended = life(outputs, rng, alarm=False, most=SOON, seed=i)
        ends.append((np.inf, np.inf) if ended is None else (ended.unit, ended.all))
    unit, all_ = np.array(ends).T
    medians = [None if np.isinf(m) else float(m) for m in (np.median(unit), np.median(all_))]
    return {
        "domain": domain,
        "sources": sources,
        "promotions": number,
        "within_of_unit": asdict(rate(int((unit <= SOON).sum()), number)),
        "within_of_all": asdict(rate(int((all_ <= SOON).sum()), number)),
        "median_of_unit": medians[0],
        "median_of_all": medians[1],
    }
