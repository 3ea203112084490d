"""The draft length that pays: never far from the best fixed one or plain decoding, and quick to notice a change."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice

import pytest

from draftloop.decoding.draft_length import MEMORY, PROBING, AdaptiveDraftLength, Experience, LatencyProfile

MOST = 8
MACHINES = {
    "cheap draft, dear positions": LatencyProfile(0.47, (4.9, 6.2, 6.7, 7.1, 7.5, 7.9, 8.3, 8.7, 9.1)),
    "cheap positions": LatencyProfile(4.0, (30, 31, 32, 33, 34, 36, 38, 40, 42)),
    "dear draft": LatencyProfile(15.0, (30, 31, 32, 33, 34, 36, 38, 40, 42)),
    "draft as dear as its target": LatencyProfile(30.0, (30, 31, 32, 33, 34, 36, 38, 40, 42)),
}

Acceptance = Callable[[int], float]  # of each proposal, by tokens emitted before


class Fixed:
    """The same K in every round."""

    def __init__(self, k: int) -> None:
        self._k = k

    def choose(self) -> int:
        return self._k

    def plain_steps(self) -> int:
        return 100

    def observe(self, drafted: int, accepted: int) -> None:
        """Nothing is learned."""


def rounds(
    costs: LatencyProfile, policy: AdaptiveDraftLength | Fixed, acceptance: Acceptance, seed: int
) -> Iterator[tuple[int, int, float]]:
    """(K, tokens, seconds) of each round of a stream; a draft that sat out plain steps costs a step more."""
    chance, emitted, behind = random.Random(seed), 0, False
    while True:
        k = policy.choose()
        for _ in range(1 if k else policy.plain_steps()):
            kept = 0
            while kept < k and chance.random() < acceptance(emitted):
                kept += 1
            policy.observe(k, kept)
            emitted += kept + 1
            yield k, kept + 1, costs.t_target[k] + k * costs.t_draft + (costs.t_draft if k and behind else 0.0)
            behind = k == 0


def speed(costs: LatencyProfile, make: Callable[[], AdaptiveDraftLength | Fixed], acceptance: Acceptance) -> float:
    tokens = seconds = 0.0
    for seed in range(3):
        for _, more, took in islice(rounds(costs, make(), acceptance, seed), 8_000):
            tokens, seconds = tokens + more, seconds + took
    return tokens / seconds


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("accepted", [0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 0.95])
def test_it_loses_no_more_than_3_percent_against_the_best_fixed_length_and_plain_decoding(
    machine: str, accepted: float
) -> None:
    costs = MACHINES[machine]
    fixed = [speed(costs, lambda k=k: Fixed(k), lambda _: accepted) for k in range(MOST + 1)]  # type: ignore[misc]
    found = speed(costs, lambda: AdaptiveDraftLength(costs, MOST), lambda _: accepted)
    assert found > 0.97 * max(fixed)


def test_a_draft_that_is_never_right_is_left_off_but_for_the_stated_share_of_time() -> None:
    costs = MACHINES["cheap positions"]
    made = list(islice(rounds(costs, AdaptiveDraftLength(costs, MOST), lambda _: 0.0, 0), 4_000))[1_000:]
    lost = sum(took - tokens * costs.t_target[0] for _, tokens, took in made)
    assert 0 < lost / sum(took for _, _, took in made) <= 1.2 * PROBING  # what is expected leans on better times
    assert {k for k, _, _ in made} == {0, 1}


@pytest.mark.parametrize(("before", "after", "least"), [(0.05, 0.85, 3), (0.85, 0.05, 0)])
def test_a_jump_of_acceptance_is_found_out(before: float, after: float, least: int) -> None:
    """With the stream at its new acceptance, so many tokens until the length is the right kind and stays it."""
    costs, jump = MACHINES["cheap positions"], 3_000
    for seed in range(5):
        emitted, wrong = 0, 0
        stream = rounds(costs, AdaptiveDraftLength(costs, MOST), lambda n: before if n < jump else after, seed)
        for k, tokens, _ in stream:
            emitted += tokens
            if emitted > jump and (k < least if least else k > 1):
                wrong = emitted - jump
            if emitted > jump + 2_000:
                break
        assert 0 < wrong < 400


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("accepted", [0.05, 0.4, 0.7, 0.9])
def test_in_short_texts_it_loses_no_more_for_it_goes_on_from_the_one_before(machine: str, accepted: float) -> None:
    """Texts of 30 rounds, each with a policy of its own, which is given nothing but the experience of the last."""
    costs = MACHINES[machine]
    fixed = [speed(costs, lambda k=k: Fixed(k), lambda _: accepted) for k in range(MOST + 1)]  # type: ignore[misc]
    tokens = seconds = 0.0
    known = Experience()
    for seed in range(200):
        policy = AdaptiveDraftLength(costs, MOST, known)
        for _, more, took in islice(rounds(costs, policy, lambda _: accepted, seed), 30):
            tokens, seconds = tokens + more, seconds + took
        known = policy.experience
    assert tokens / seconds > 0.97 * max(fixed)


def test_a_policy_that_is_given_experience_goes_on_as_the_one_that_made_it() -> None:
    costs = MACHINES["cheap positions"]
    one = AdaptiveDraftLength(costs, MOST)
    for _ in islice(rounds(costs, one, lambda _: 0.7, 0), 50):
        pass
    other = AdaptiveDraftLength(costs, MOST, one.experience)
    assert (other.speeds(), other.experience) == (one.speeds(), one.experience)
    assert AdaptiveDraftLength(costs, 3, one.experience).speeds() == one.speeds()[:4]
    assert AdaptiveDraftLength(costs, 3, one.experience).experience == one.experience  # what is deeper is not forgotten
    deeper = AdaptiveDraftLength(costs, MOST, AdaptiveDraftLength(costs, 3, one.experience).experience)
    assert deeper.speeds()[:4] == one.speeds()[:4]


@pytest.mark.parametrize(
    ("judged", "kept"),
    [((1.0,), (2.0,)), ((-1.0,), (-2.0,)), ((1.0,), ()), ((float("nan"),), (0.0,)), ((2e9,), (1.0,))],
)
def test_experience_of_no_rounds_that_can_have_been_is_refused(
    judged: tuple[float, ...], kept: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match=f"<= {MEMORY}|shorter"):
        Experience(judged, kept)


def test_it_asks_for_costs_of_every_length() -> None:
    with pytest.raises(ValueError, match="profile reaches K = 8: expected 9"):
        AdaptiveDraftLength(MACHINES["cheap positions"], 9)


def test_before_anything_is_known_it_drafts() -> None:
    assert AdaptiveDraftLength(MACHINES["cheap positions"], MOST).choose() > 0
