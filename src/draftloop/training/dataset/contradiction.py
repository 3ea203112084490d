"""Spot checks decided: which records, and which sources, the target's own scoring contradicts. Knows no model.

A record says log p of each token that was emitted. Where the target wrote the output, its own scoring says the same up
to rounding. Where somebody made up the output or the figures, it does not.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LEAST = 8  # records of a source that are checked, where there are as many
MOST_A_TOKEN = 5.0  # nats that one token can add: one that rounding put out of a nucleus says no more than that
MOST_OF_A_RECORD = 0.5  # nats, mean over its tokens: 25 times what bfloat16 does to outputs of the embedded pair
MOST_OF_A_SOURCE = 0.1  # share of its checked records that may be contradicted
_CERTAIN = 2  # contradicted records without which no source is left out

CONTRADICTED = "contradicted by the target"
CONTRADICTED_SOURCE = "of a source that the target contradicts"


@dataclass(frozen=True, slots=True)
class CheckedRecord:
    """A record that the target has read again: mean difference of log p over its tokens, in nats, 0 to MOST_A_TOKEN."""

    id: str
    source: str
    difference: float

    @property
    def is_contradicted(self) -> bool:
        """Whether the target cannot have said this."""
        return self.difference > MOST_OF_A_RECORD


@dataclass(frozen=True, slots=True)
class SpotChecks:
    """What was checked, and what follows.

    Attributes:
        checked: every record that was, in the order of the log.
        sources: those of which every record is left out.
    """

    checked: tuple[CheckedRecord, ...] = ()
    sources: frozenset[str] = frozenset()

    @property
    def contradicted(self) -> frozenset[str]:
        """Ids of the contradicted records."""
        return frozenset(one.id for one in self.checked if one.is_contradicted)

    def warnings(self) -> list[str]:
        """A line for every source with contradicted records: how many, what is left out, what to do."""
        lines = []
        for source, own in _by_source(self.checked).items():
            wrong = [one for one in own if one.is_contradicted]
            if wrong:
                mean = sum(one.difference for one in wrong) / len(wrong)
                what = "all records of it" if source in self.sources else "these"
                lines.append(
                    f"warning: the target contradicts {len(wrong)} of {len(own)} checked records of source {source} "
                    f"(log p is off by {mean:.2g} nats a token); this training leaves out {what}, and "
                    f"`draftloop log rm --source {source}` removes the source"
                )
        return lines


def records_to_check(sources: Mapping[str, str], share: float, seed: int) -> list[str]:
    """A random share of the records of every source, at least `LEAST` of each where there are as many.

    Args:
        sources: of the records, by id.
        share: 0 to 1; 0 checks none.
        seed: of the training.

    Returns:
        Ids in the order of `sources`; which ones does not depend on that order.
    """
    ids: dict[str, list[str]] = defaultdict(list)
    for record_id, source in sources.items():
        ids[source].append(record_id)
    chosen = set[str]()
    for own in ids.values():
        count = max(math.ceil(share * len(own)), LEAST) if share > 0 else 0
        chosen.update(sorted(own, key=lambda record_id: _rank(record_id, seed))[:count])
    return [record_id for record_id in sources if record_id in chosen]


def mean_difference(recorded: Sequence[float | None], scored: Sequence[float]) -> float:
    """Mean over the tokens of |log p of the record − log p of the target|, no token above `MOST_A_TOKEN`.

    Args:
        recorded: None where there was no mass.
        scored: −inf where there is none; as many, at least one.
    """
    total = 0.0
    for before, now in zip(recorded, scored, strict=True):
        if before is None or math.isinf(now):
            total += 0.0 if before is None and math.isinf(now) else MOST_A_TOKEN
        else:
            total += min(abs(before - now), MOST_A_TOKEN)
    return total / len(scored)


def judge_checks(checked: Iterable[CheckedRecord]) -> SpotChecks:
    """What follows of the checks.

    A source is left out where more than `MOST_OF_A_SOURCE` of its checked records are contradicted, and more than one.
    """
    checked = tuple(checked)
    sources = set[str]()
    for source, own in _by_source(checked).items():
        wrong = sum(one.is_contradicted for one in own)
        if wrong >= _CERTAIN and wrong > MOST_OF_A_SOURCE * len(own):
            sources.add(source)
    return SpotChecks(checked, frozenset(sources))


def _by_source(checked: Iterable[CheckedRecord]) -> dict[str, list[CheckedRecord]]:
    by_source: dict[str, list[CheckedRecord]] = defaultdict(list)
    for one in checked:
        by_source[one.source].append(one)
    return dict(sorted(by_source.items()))


def _rank(record_id: str, seed: int) -> bytes:
    return hashlib.sha256(f"spot check:{seed}:{record_id}".encode()).digest()
