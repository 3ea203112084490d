"""The advice counts K = 0 among the draft lengths, and no number says more than was measured."""

from __future__ import annotations

import statistics

import pytest

from draftloop.config import Rule
from draftloop.evaluation.throughput import SpeedRow, _advice, relative_spread
from draftloop.evaluation.timed_decoding import OURS, STOCK, Decoder, Way


def row(by: Decoder, rule: Rule | None, k: int | None, speed_up: float) -> SpeedRow:
    return SpeedRow(Way(by, rule, k), 10, None, (1.0,), 1.0, None, speed_up, None, None)


@pytest.mark.parametrize(
    ("speed_ups", "k", "rule"),
    [
        ((0.97, 0.9), 0, "rejection"),
        ((1.02, 1.3), 4, "rejection"),
        ((1.4, 1.3), 1, "rejection"),
        ((1.0, 1.0), 0, "rejection"),
    ],
)
def test_the_fastest_draft_length_is_advised_and_none_where_none_pays(
    speed_ups: tuple[float, float], k: int, rule: Rule
) -> None:
    one, four = speed_ups
    rows = [row(STOCK, None, 0, 1.0), row(STOCK, None, 4, 2.0), row(OURS, None, 0, 1.0)]
    rows += [row(OURS, "rejection", 1, one), row(OURS, "rejection", 4, four), row(OURS, "rejection", None, 3.0)]
    found = _advice(rows)
    assert (found.num_draft_tokens, found.rule, found.speed_up) == (k, rule, max(1.0, one, four))


def test_the_spread_is_half_of_the_middle_half_over_the_median_and_one_number_has_none() -> None:
    assert relative_spread([3.0]) is None
    values = [8.0, 10.0, 11.0, 14.0]
    low, median, high = statistics.quantiles(values, n=4)
    assert relative_spread(values) == (high - low) / 2 / median
    assert relative_spread([5.0, 5.0]) == 0.0
