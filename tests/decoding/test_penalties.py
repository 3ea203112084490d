"""Penalties that change nothing are off."""

from __future__ import annotations

import pytest

from draftloop.decoding.penalties import Penalties


@pytest.mark.parametrize(
    ("penalties", "off"),
    [
        (Penalties(), True),
        (Penalties(1, 0, 0), True),
        (Penalties(repetition=1.1), False),
        (Penalties(presence=-0.5), False),
        (Penalties(frequency=0.1), False),
    ],
)
def test_penalties_are_off_where_they_change_nothing(penalties: Penalties, off: bool) -> None:
    assert penalties.are_off == off
