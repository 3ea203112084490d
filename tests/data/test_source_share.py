from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from draftloop.data.source_share import bounded_parts, seats_by_source, tokens_by_source

NAMES = st.text("abcdefgh", min_size=1, max_size=2)
TOKENS = st.dictionaries(NAMES, st.integers(0, 10_000), min_size=1, max_size=8).filter(lambda one: any(one.values()))
SHARES = st.floats(0.01, 1.0)


def test_one_source_alone_has_everything() -> None:
    assert tokens_by_source({"one": 700}, 700, 0.1) == {"one": 700}
    assert tokens_by_source({"one": 700, "silent": 0}, 700, 0.1) == {"one": 700, "silent": 0}


def test_what_the_largest_may_not_have_goes_to_the_others_in_proportion() -> None:
    assert tokens_by_source({"chatty": 970, "mail": 20, "code": 10}, 1_000, 0.7) == {
        "chatty": 700,
        "mail": 200,
        "code": 100,
    }


def test_what_was_drawn_already_counts() -> None:
    drawn = tokens_by_source({"chatty": 900, "mail": 100}, 1_000, 0.8, {"chatty": 250})
    assert drawn == {"chatty": 750, "mail": 250}  # 1,000 of 1,250 in all


def test_a_single_failure_beside_many_takes_no_more_than_the_largest_has_to_give_up() -> None:
    assert tokens_by_source({"chatty": 64_000, "one": 5}, 64_005, 0.8) == {"chatty": 51_204, "one": 12_801}


@given(TOKENS, SHARES)
def test_no_source_has_more_than_its_share_wherever_there_are_sources_enough(
    available: dict[str, int], share: float
) -> None:
    total, sources = sum(available.values()), sum(tokens > 0 for tokens in available.values())
    drawn = tokens_by_source(available, total, share)
    assert sum(drawn.values()) == total
    assert all((tokens > 0) >= (drawn[source] > 0) for source, tokens in available.items())
    if sources > 1:
        assert max(drawn.values()) < max(share, 1 / sources) * total + 1


@given(TOKENS, TOKENS, st.integers(0, 20_000), SHARES)
def test_with_what_was_drawn_before_the_share_is_of_both(
    available: dict[str, int], before: dict[str, int], total: int, share: float
) -> None:
    drawn = tokens_by_source(available, total, share, before)
    sources = sum(tokens > 0 for tokens in available.values())
    assert sum(drawn.values()) == total
    most = max(share, 1 / sources) * (total + sum(before.values()))
    for source in available:
        assert sources == 1 or drawn[source] < max(0.0, most - before.get(source, 0)) + 1


@given(TOKENS, SHARES)
def test_where_nobody_is_above_the_share_nothing_changes(available: dict[str, int], share: float) -> None:
    total = sum(available.values())
    if max(available.values()) <= share * total:
        assert tokens_by_source(available, total, share) == available


@given(TOKENS, SHARES)
def test_the_others_have_more_than_they_brought_and_all_of_them_as_many_times(
    available: dict[str, int], share: float
) -> None:
    total = sum(available.values())
    drawn = tokens_by_source(available, total, share)
    sources = [source for source, tokens in available.items() if tokens]
    most = max(share, 1 / len(sources)) * total
    others = [source for source in sources if drawn[source] <= most - 1]
    if others:
        times = sum(drawn[source] for source in others) / sum(available[source] for source in others)
        assert times >= 1 - 1e-9
        assert all(abs(drawn[source] - times * available[source]) <= 1 for source in others)


@given(TOKENS, SHARES, st.randoms())
def test_the_order_of_the_sources_does_not_matter(available: dict[str, int], share: float, choose: object) -> None:
    total, names = sum(available.values()), list(available)
    choose.shuffle(names)  # type: ignore[attr-defined]
    assert tokens_by_source({name: available[name] for name in names}, total, share) == tokens_by_source(
        available, total, share
    )


@given(TOKENS, st.integers(1, 12_000), SHARES)
def test_seats_are_filled_and_nobody_has_more_than_there_are_candidates(
    counts: dict[str, int], seats: int, share: float
) -> None:
    kept = seats_by_source(counts, seats, share)
    assert sum(kept.values()) == min(seats, sum(counts.values()))
    assert all(0 <= kept[source] <= counts[source] for source in counts)
    largest = max(kept.values())
    if largest >= share * seats + 1:  # then nobody else could have filled the rest
        assert all(kept[source] in (counts[source], largest, largest - 1) for source in counts)


def test_parts_go_by_largest_remainders_and_ties_to_the_first_name() -> None:
    assert bounded_parts({"c": 1, "b": 1, "a": 1}, 2, dict.fromkeys("abc", 2.0)) == {"a": 1, "b": 1, "c": 0}
