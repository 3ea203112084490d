from __future__ import annotations

import mlx.core as mx
import pytest

from draftloop.runtime.rng import get_state, set_state, unchanged


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3])
def test_a_state_that_is_put_back_draws_the_same_again(seed):
    mx.random.seed(seed)
    mx.eval(mx.random.normal((3,)))  # off the beaten track: a split key, not a seed's
    state = get_state()
    first = mx.random.normal((5,)).tolist()
    set_state(state)
    assert mx.random.normal((5,)).tolist() == first
    assert mx.random.normal((5,)).tolist() != first


def test_a_block_that_draws_leaves_no_trace():
    mx.random.seed(1)
    with unchanged():
        mx.eval(mx.random.normal((5,)))
    assert mx.random.normal((3,)).tolist() == _first_of_seed_one()


def _first_of_seed_one() -> list[float]:
    mx.random.seed(1)
    return mx.random.normal((3,)).tolist()
