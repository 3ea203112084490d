"""A training beside the server never takes what requests need, and has the target where that fits."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftloop.runtime.memory import GIGABYTE
from draftloop.serving.child_plan import DRAFTS, WORK, ChildPlan, plan_child

BYTES = st.integers(0, 64 * GIGABYTE)


@given(left=BYTES, target=BYTES, draft=BYTES, limit=st.just("auto") | st.floats(0.1, 64.0))
def test_it_fits_beside_the_requests_or_makes_way_for_them(
    left: int, target: int, draft: int, limit: float | Literal["auto"]
) -> None:
    plan = plan_child(left, target, draft, limit)
    least, most = DRAFTS * draft + WORK, math.inf if limit == "auto" else limit
    if plan is None:
        assert min(left, most * GIGABYTE) < least
        return
    taken = plan.memory_gb * GIGABYTE
    assert taken <= (left if plan.is_ended else left / 2) * (1 + 1e-9)
    assert plan.memory_gb <= most
    assert taken * (1 + 1e-9) >= least + (target if plan.has_target else 0)


@given(left=BYTES, more=BYTES, target=BYTES, draft=BYTES)
def test_more_memory_is_never_worse(left: int, more: int, target: int, draft: int) -> None:
    def worth(plan: ChildPlan | None) -> int:
        return 0 if plan is None else 1 + (not plan.is_ended) + plan.has_target

    assert worth(plan_child(left + more, target, draft)) >= worth(plan_child(left, target, draft))


@pytest.mark.parametrize(
    ("left", "has_target", "is_ended"),
    [(14.0, True, False), (8.0, False, False), (2.5, False, True), (1.0, None, None)],
)
def test_by_what_is_left(left: float, has_target: bool | None, is_ended: bool | None) -> None:
    """Of a target of 4 GB and a draft of 0.4 GB."""
    plan = plan_child(left * GIGABYTE, 4 * GIGABYTE, 400_000_000)
    assert (plan and plan.has_target, plan and plan.is_ended) == (has_target, is_ended)
