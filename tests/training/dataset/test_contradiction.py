from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.training.dataset.contradiction import (
    LEAST,
    MOST_A_TOKEN,
    MOST_OF_A_RECORD,
    MOST_OF_A_SOURCE,
    CheckedRecord,
    judge_checks,
    mean_difference,
    records_to_check,
)

SOURCES = st.dictionaries(st.integers(0, 10**6).map(str), st.sampled_from("abc"), min_size=1, max_size=120)
LOG_P = st.one_of(st.none(), st.floats(-60.0, 0.0))
CHECKED = st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.0, MOST_A_TOKEN)), max_size=60).map(
    lambda drawn: [CheckedRecord(str(i), source, difference) for i, (source, difference) in enumerate(drawn)]
)


@given(SOURCES, st.floats(0.001, 1.0), st.integers(0, 5))
def test_of_every_source_its_share_is_checked_and_a_few_at_least(
    sources: dict[str, str], share: float, seed: int
) -> None:
    counts, chosen = Counter(sources.values()), records_to_check(sources, share, seed)
    checked = Counter(sources[record_id] for record_id in chosen)
    for source, count in counts.items():
        assert checked[source] == min(count, max(LEAST, math.ceil(share * count)))
    assert chosen == [record_id for record_id in sources if record_id in set(chosen)]


@given(SOURCES, st.randoms())
def test_which_ones_depends_on_the_seed_and_not_on_their_order(sources: dict[str, str], choose: random.Random) -> None:
    shuffled = list(sources.items())
    choose.shuffle(shuffled)
    assert set(records_to_check(dict(shuffled), 0.05, 3)) == set(records_to_check(sources, 0.05, 3))
    many = {str(i): "a" for i in range(400)}
    assert records_to_check(many, 0.05, 3) != records_to_check(many, 0.05, 4)


def test_a_share_of_0_checks_nothing() -> None:
    assert records_to_check({"1": "a"}, 0.0, 0) == []


@pytest.mark.parametrize(
    ("recorded", "scored", "difference"),
    [
        ([-1.0, -2.0], [-1.0, -2.0], 0.0),
        ([-1.0, -2.0], [-1.5, -1.5], 0.5),
        ([-1.0, None], [-1.0, -1.0], 2.5),
        ([-1.0, -1.0], [-1.0, -math.inf], 2.5),
        ([None], [-math.inf], 0.0),
        ([-1.0], [-50.0], 5.0),
    ],
)
def test_the_difference_is_the_mean_over_the_tokens_and_no_token_counts_more_than_5(
    recorded: list[float | None], scored: list[float], difference: float
) -> None:
    assert mean_difference(recorded, scored) == pytest.approx(difference)


@given(st.lists(st.tuples(LOG_P, LOG_P), min_size=1, max_size=40))
def test_a_difference_is_within_its_range_and_the_same_both_ways(
    pairs: list[tuple[float | None, float | None]],
) -> None:
    def as_scored(values: list[float | None]) -> list[float]:
        return [-math.inf if value is None else value for value in values]

    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    found = mean_difference(one, as_scored(other))
    assert 0.0 <= found <= MOST_A_TOKEN
    assert found == pytest.approx(mean_difference(other, as_scored(one)))
    assert mean_difference(one, as_scored(one)) == 0.0


@given(CHECKED)
def test_a_source_is_left_out_by_more_than_a_tenth_of_its_checks_and_never_by_one_alone(
    checked: list[CheckedRecord],
) -> None:
    checks = judge_checks(checked)
    for source in "ab":
        own = [one for one in checked if one.source == source]
        wrong = [one for one in own if one.difference > MOST_OF_A_RECORD]
        assert (source in checks.sources) == (len(wrong) >= 2 and len(wrong) > MOST_OF_A_SOURCE * len(own))
    assert checks.contradicted == {one.id for one in checked if one.difference > MOST_OF_A_RECORD}
    assert len(checks.warnings()) == len({one.source for one in checked if one.is_contradicted})


@given(CHECKED, st.randoms())
def test_the_order_of_the_checks_does_not_matter(checked: list[CheckedRecord], choose: random.Random) -> None:
    shuffled = choose.sample(checked, len(checked))
    assert judge_checks(shuffled).sources == judge_checks(checked).sources


def test_a_warning_names_the_source_and_the_remedy() -> None:
    wrong, right = CheckedRecord("1", "mail", 2.0), CheckedRecord("2", "mail", 0.0)
    (line,) = judge_checks([wrong, right]).warnings()
    assert "contradicts 1 of 2 checked records of source mail (log p is off by 2 nats a token)" in line
    assert "leaves out these, and `draftloop log rm --source mail` removes the source" in line
    (line,) = judge_checks([wrong, wrong]).warnings()
    assert "leaves out all records of it" in line
    assert judge_checks([right]).warnings() == []
