"""What a pair gives at an acceptance, and what it would take, by the formulas of the forecast."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.decoding.draft_length import LatencyProfile
from draftloop.evaluation.break_even import break_even

FREE = LatencyProfile(0.0, (1.0, 1.0, 1.0))  # drafting and verifying cost nothing
DEAR = LatencyProfile(1.0, (1.0, 1.5, 2.0))  # even if all is accepted: 2 / 2.5 at K = 1, 3 / 4 at K = 2


def test_a_free_draft_always_pays() -> None:
    found = break_even(0.5, FREE)
    assert found.forecast == pytest.approx(1 + 0.5 + 0.25)
    assert found.needed == pytest.approx(0.0, abs=1e-9)
    assert found.warning is None


def test_a_draft_as_dear_as_the_target_never_does() -> None:
    found = break_even(1.0, DEAR)
    assert found.forecast == pytest.approx(2 / 2.5)
    assert found.needed is None
    assert found.warning is not None
    assert "cannot pay" in found.warning
    assert "take a smaller draft" in found.warning


def test_what_it_would_take_is_said() -> None:
    found = break_even(0.2, LatencyProfile(0.3, (1.0, 1.2)))  # one proposal: (1 + a) / 1.5 = 1 at a half
    assert found.needed == pytest.approx(0.5)
    assert found.forecast == pytest.approx(1.2 / 1.5)
    assert found.warning is not None
    assert "it would take about 0.50" in found.warning


@given(
    st.floats(0.01, 2.0),
    st.lists(st.floats(0.0, 0.5), min_size=1, max_size=8),
    st.floats(0.0, 1.0),
)
def test_it_pays_from_there_on(t_draft: float, more: list[float], acceptance: float) -> None:
    seconds = [1.0]
    for each in more:
        seconds.append(seconds[-1] + each)
    found = break_even(acceptance, LatencyProfile(t_draft, tuple(seconds)))
    if found.needed is None:
        assert not break_even(1.0, LatencyProfile(t_draft, tuple(seconds))).pays
    else:
        assert break_even(min(1.0, found.needed + 1e-6), LatencyProfile(t_draft, tuple(seconds))).forecast >= 1 - 1e-9
        assert found.pays == (found.forecast > 1.0)
        if acceptance < found.needed - 1e-6:
            assert not found.pays
