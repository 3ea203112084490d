"""Which generations a pair is trained with, and which it is measured on."""

from __future__ import annotations

import pytest
from builders import make_record

from draftloop.data.records import PairId
from draftloop.data.usable import (
    CANCELLED,
    FOREIGN_ID,
    NO_OUTPUT,
    OTHER_PAIR,
    why_not_measured,
    why_unusable,
)

PAIR = make_record().pair
OTHER = PairId(target="x" * 64, draft="b" * 64, tokenizer="c" * 64)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, None),
        ({"finish": "length"}, None),
        ({"simulated": True}, None),
        ({"pair": OTHER}, OTHER_PAIR),
        ({"target_output": ()}, NO_OUTPUT),
        ({"prompt_tokens": (1, 100)}, FOREIGN_ID),
    ],
    ids=str,
)
def test_what_can_be_trained_with_can_be_measured_on(changed: dict[str, object], why: str | None) -> None:
    record = make_record(**changed)
    assert why_unusable(record, PAIR, 100) == why
    assert why_not_measured(record, PAIR, 100) == why


def test_a_cancelled_generation_trains_and_measures_nothing() -> None:
    record = make_record(finish="cancelled")
    assert why_unusable(record, PAIR, 100) is None
    assert why_not_measured(record, PAIR, 100) == CANCELLED
