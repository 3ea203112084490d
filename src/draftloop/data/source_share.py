"""The share that one source has of what is drawn or kept: in proportion to what it has, up to a bound. Knows no record.

Sources that would have more than their bound have just that, and all others have the rest, again in proportion: each of
them the same number of times what it has. Where every source is at its bound, there are too few for any smaller share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Source = TypeVar("Source", str, tuple[str, str, str])


def bounded_parts(weights: Mapping[Source, int], total: int, bounds: Mapping[Source, float]) -> dict[Source, int]:
    """`total` whole things in parts: in proportion to `weights`, but no part above its bound.

    Args:
        weights: what each source has, 0 or more.
        total: to share out, 0 or more.
        bounds: the most that each source may have; at least `total` together, or there is no such parting.

    Returns:
        A part for each source, `total` together: by largest remainders, ties to the first name. A bound that is no
        whole number may be exceeded by less than 1.
    """
    parts, left = dict.fromkeys(weights, 0), total
    free = {source: weight for source, weight in weights.items() if weight > 0}
    # 1. Who would be above its bound has it; the others then have more, and may come above theirs.
    while above := [source for source in free if left * free[source] > bounds[source] * sum(free.values())]:
        for source in above:
            parts[source] = int(bounds[source])
            left -= parts[source]
            del free[source]
    # 2. The rest in proportion.
    weight = sum(free.values())
    for source in free:
        parts[source] = left * free[source] // weight
    # 3. What rounding down left over; where everybody is at a bound, by what the bounds lost.
    lost: dict[Source, float] = {source: left * free[source] % weight for source in free}
    lost = lost or {source: bounds[source] - parts[source] for source in weights if weights[source] > 0}
    ranked = sorted(lost, key=lambda source: (-lost[source], source))
    for source in ranked[: total - sum(parts.values())]:
        parts[source] += 1
    return parts


def tokens_by_source(
    available: Mapping[str, int], total: int, share: float, drawn: Mapping[str, int] | None = None
) -> dict[str, int]:
    """How many tokens are drawn of each source, so that none has more than its share of all that is drawn.

    Args:
        available: supervised tokens of each source, 0 or more; what is drawn may be more, or less, than a source has.
        total: tokens to draw.
        share: the most that one source may have, above 0 and at most 1. Of n sources one may always have an nth, and a
            single one may have everything.
        drawn: what is drawn already, beside `total`; it counts.

    Returns:
        As `bounded_parts`.
    """
    drawn = drawn or {}
    sources = sum(tokens > 0 for tokens in available.values())
    everything = total + sum(drawn.values())
    most = max(share, 1 / sources) * everything if sources > 1 else float(everything)
    bounds = {source: max(0.0, most - drawn.get(source, 0)) if sources > 1 else most for source in available}
    return bounded_parts(available, total, bounds)


def seats_by_source(counts: Mapping[Source, int], seats: int, share: float) -> dict[Source, int]:
    """How many of each source are kept, where there are more than `seats`: none is crowded out by a larger one.

    Args:
        counts: candidates of each source.
        seats: most that are kept in all.
        share: the most of the seats that one source may have, above 0 and at most 1, as long as others fill the rest.

    Returns:
        Never more than there are candidates.
    """
    if sum(counts.values()) <= seats:
        return dict(counts)
    # The level at which the seats are filled where every source has as many as any other, or all that it has.
    level, left = 0.0, float(seats)
    for number, count in enumerate(sorted(counts.values())):
        level = left / (len(counts) - number)
        left -= min(count, level)
    most = max(share * seats, level)
    return bounded_parts(counts, seats, {source: min(count, most) for source, count in counts.items()})
