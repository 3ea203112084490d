"""Page-Hinkley on generations: the statistic, the rate of false alarms, what a watch says, and what is one stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from builders import make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from draftloop.config import Drift
from draftloop.data.replay import generation_acceptance
from draftloop.evaluation.drift import (
    LoggedGeneration,
    StreamCheck,
    StreamKey,
    check_stream,
    check_streams,
    generation_of,
    page_hinkley,
    threshold,
)

FloatArray = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], FloatArray]
DEFAULTS = Drift()
SHORT = Drift(horizon=50, reference=20)
acceptances = st.floats(0.0, 1.0, width=32)


def steady(seed: int, count: int, mean: float = 0.6) -> FloatArray:
    """Acceptances scattered about a mean as the embedded pair's are."""
    return np.random.default_rng(seed).normal(mean, 0.09, count).clip(0.0, 1.0)


def changed(config: Drift = DEFAULTS, **changes: float) -> Drift:
    return Drift(**{**config.model_dump(), **changes})


def watched(reference: FloatArray, stream: FloatArray, config: Drift = DEFAULTS, seed: int = 0) -> StreamCheck:
    return check_stream(reference, stream, source="code", kind="drift", settings=config, seed=seed)


def key_of(source: str, temperature: float = 0.8) -> StreamKey:
    return StreamKey("a" * 64, "b" * 64, source, "rejection", temperature, 1.0, 0.0, 0)


def generations(values: FloatArray, adapter: str | None = "v0002", temperature: float = 0.8) -> list[LoggedGeneration]:
    key = key_of("code", temperature)
    return [LoggedGeneration(f"{i}", key, "g", adapter, float(value), "train") for i, value in enumerate(values)]


# The statistic


def textbook(stream: list[float], mean: float, tolerance: float) -> list[float]:
    m, sums, found = 0.0, [0.0], []
    for x in stream:
        m += mean - tolerance - x
        sums.append(m)
        found.append(m - min(sums))
    return found


@given(st.lists(acceptances, max_size=60), acceptances, st.floats(0.0, 0.2))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_statistic_is_the_textbook_s(stream: list[float], mean: float, tolerance: float) -> None:
    assert page_hinkley(np.array(stream), mean, tolerance) == pytest.approx(textbook(stream, mean, tolerance))


def test_many_streams_at_once_are_each_as_alone() -> None:
    streams, means = steady(1, 60).reshape(3, 20), np.array([0.5, 0.6, 0.7])
    together = page_hinkley(streams, means[:, None], 0.01)
    assert np.array_equal(together, [page_hinkley(s, m, 0.01) for s, m in zip(streams, means, strict=True)])


def test_a_rise_leaves_it_at_zero() -> None:
    assert not page_hinkley(np.full(50, 0.7), 0.6, 0.0).any()


# Alarms


@given(acceptances, st.integers(1, 150))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_constant_stream_never_alarms(value: float, count: int) -> None:
    found = watched(np.full(20, value), np.full(count, value), changed(SHORT, tolerance=0.0))
    assert not found.alarm


def test_a_fall_alarms_and_says_since_when_and_to_what() -> None:
    stream = np.concatenate([steady(1, 60), steady(2, 120, mean=0.4)])
    found = watched(steady(0, 30), stream)
    assert found.alarm
    assert found.alarm_at is not None
    assert found.change_at is not None
    assert found.recent is not None
    assert 60 < found.alarm_at < 140
    assert abs(found.change_at - 60) <= 5
    assert found.recent == stream[found.change_at :].mean()
    assert abs(found.recent - 0.4) < 0.03
    assert found.reference == steady(0, 30).mean()
    assert (found.generations, found.source, found.kind) == (180, "code", "drift")
    assert found.statistic > found.threshold


def test_a_fall_from_the_first_generation_on_begins_there() -> None:
    assert watched(steady(0, 30), steady(1, 120, mean=0.3)).change_at == 0


def test_without_an_alarm_recent_is_the_mean_of_as_many_as_a_reference_takes() -> None:
    stream = steady(1, 100)
    found = watched(steady(0, 30), stream)
    assert (found.alarm, found.alarm_at, found.change_at) == (False, None, None)
    assert found.recent == stream[-30:].mean()
    assert found.statistic <= found.threshold


def test_nothing_watched_is_no_alarm() -> None:
    found = watched(steady(0, 30), np.zeros(0))
    assert (found.alarm, found.recent, found.generations, found.statistic) == (False, None, 0, 0.0)


def test_an_alarm_stays_when_acceptance_recovers() -> None:
    stream = np.concatenate([steady(1, 100, mean=0.3), steady(2, 400)])
    assert watched(steady(0, 30), stream).alarm
    assert watched(steady(0, 30), stream).alarm_at == watched(steady(0, 30), stream[:100]).alarm_at


@pytest.mark.parametrize("seed", range(5))
def test_a_rise_never_alarms(seed: int) -> None:
    assert not watched(steady(seed, 30), steady(seed + 10, 400, mean=0.7)).alarm


def test_a_fall_within_the_tolerance_is_let_be() -> None:
    reference, stream = steady(0, 100), steady(1, 200, mean=0.52)
    assert watched(reference, stream, changed(tolerance=0.01)).alarm
    assert not watched(reference, stream, changed(tolerance=0.1)).alarm


def test_after_every_horizon_the_sum_begins_anew() -> None:
    """A small error of the reference would otherwise add up until it alarms, however long that takes."""
    reference = np.tile([0.5, 0.7], 10)
    stream = np.full(5000, reference.mean() - SHORT.tolerance - 0.01)
    found = watched(reference, stream, SHORT)
    assert not found.alarm
    assert found.statistic == pytest.approx(SHORT.horizon * 0.01)
    assert page_hinkley(stream, found.reference, SHORT.tolerance).max() > found.threshold


def test_a_fall_in_a_later_horizon_is_found_there() -> None:
    stream = np.concatenate([np.tile([0.5, 0.7], 60), np.full(80, 0.2)])
    found = watched(np.tile([0.5, 0.7], 10), stream, SHORT)
    assert found.alarm_at is not None
    assert 120 < found.alarm_at < 150
    assert found.change_at in (119, 120)


@pytest.mark.parametrize(
    ("reference", "stream"),
    [([0.5], [0.5]), ([], []), ([0.5, 1.1], [0.5]), ([0.5, 0.6], [-0.1]), ([0.5, float("nan")], [])],
)
def test_what_is_no_acceptance_is_refused(reference: list[float], stream: list[float]) -> None:
    with pytest.raises(ValueError, match=r"acceptance"):
        watched(np.array(reference), np.array(stream))


# The threshold


def test_the_same_reference_and_seed_give_the_same_threshold() -> None:
    reference = steady(0, 30)
    assert threshold(reference, DEFAULTS, 5) == threshold(reference[::-1].copy(), DEFAULTS, 5)
    assert threshold(reference, DEFAULTS, 5) != threshold(reference, DEFAULTS, 6)
    assert threshold(reference, DEFAULTS, 5) == pytest.approx(threshold(reference, DEFAULTS, 6), rel=0.25)


def test_fewer_false_alarms_a_longer_horizon_and_a_shorter_reference_need_a_higher_threshold() -> None:
    reference = steady(0, 30)
    usual = threshold(reference, DEFAULTS, 0)
    assert threshold(reference, changed(false_alarm_rate=0.001), 0) > usual
    assert threshold(reference, changed(horizon=400), 0) > usual
    assert threshold(reference[::3].copy(), DEFAULTS, 0) > usual
    assert threshold(reference, changed(tolerance=0.05), 0) < usual


def test_a_rate_below_one_in_all_draws_takes_more_draws() -> None:
    few = [threshold(steady(0, 30), changed(SHORT, false_alarm_rate=rate), 0) for rate in (0.001, 0.0001)]
    assert few[0] < few[1]


def test_it_is_the_quantile_over_streams_with_dirichlet_masses_on_the_gaps_between_the_reference_values() -> None:
    reference = np.sort(steady(0, 20))
    edges, random = np.array([0.0, *reference, reference[-1]]), np.random.default_rng(1)
    highest = []
    for masses in random.dirichlet(np.ones(21), 4000):
        gaps = random.choice(21, SHORT.horizon, p=masses)
        stream = random.uniform(edges[gaps], edges[gaps + 1])
        highest.append(page_hinkley(stream, float(reference.mean()), SHORT.tolerance).max())
    found = [threshold(reference, changed(SHORT, false_alarm_rate=0.1), seed) for seed in range(4)]
    assert np.mean(found) == pytest.approx(np.quantile(highest, 0.9), rel=0.04)


RATE = 0.05
WATCHES = 300
RATED = Drift(false_alarm_rate=RATE, horizon=50, reference=10)
UNCHANGED: dict[str, Draw] = {
    "normal": lambda random, count: random.normal(0.6, 0.15, count).clip(0.0, 1.0),
    "skewed": lambda random, count: random.beta(5.0, 0.5, count),
    "bimodal": lambda random, count: np.where(random.random(count) < 0.5, 0.9, 0.4) + random.normal(0, 0.02, count),
}


def false_alarms(draw: Draw, limit: Callable[[FloatArray, np.random.Generator], float]) -> int:
    """In how many of `WATCHES` watches of an unchanged source PH rises above the limit within the horizon."""
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(WATCHES):
        reference, stream = draw(random, RATED.reference), draw(random, RATED.horizon)
        highest = page_hinkley(stream, float(reference.mean()), RATED.tolerance).max()
        alarms += bool(highest > limit(reference, random))
    return alarms


def ours(reference: FloatArray, _random: np.random.Generator) -> float:
    return threshold(reference, RATED, 0)


def plain_bootstrap(reference: FloatArray, random: np.random.Generator) -> float:
    means = random.choice(reference, (500, len(reference))).mean(axis=1, keepdims=True)
    streams = random.choice(reference, (500, RATED.horizon))
    return float(np.quantile(page_hinkley(streams, means, RATED.tolerance).max(axis=1), 1 - RATE))


def fixed_mean(reference: FloatArray, random: np.random.Generator) -> float:
    streams = random.choice(reference, (500, RATED.horizon))
    return float(np.quantile(page_hinkley(streams, reference.mean(), RATED.tolerance).max(axis=1), 1 - RATE))


def more_than_asked_for(alarms: int) -> float:
    """How likely so many are, or more, at the rate that was asked for."""
    return float(binomtest(alarms, WATCHES, RATE, alternative="greater").pvalue)


@pytest.mark.parametrize("kind", UNCHANGED)
def test_false_alarms_are_no_more_than_asked_for(kind: str) -> None:
    assert more_than_asked_for(false_alarms(UNCHANGED[kind], ours)) > 0.05


@pytest.mark.parametrize("broken", [plain_bootstrap, fixed_mean])
def test_thresholds_that_leave_out_what_the_reference_did_not_see_are_caught(
    broken: Callable[[FloatArray, np.random.Generator], float],
) -> None:
    assert more_than_asked_for(false_alarms(UNCHANGED["skewed"], broken)) < 1e-6


# Streams


def test_a_generation_is_what_a_record_says() -> None:
    record = make_record(adapter="v0003", source="prose")
    found = generation_of(record)
    assert (found.key.source, found.group, found.adapter) == ("prose", record.group, "v0003")
    assert found.acceptance == generation_acceptance(record)


def test_another_temperature_source_rule_or_pair_is_another_stream_and_another_seed_or_k_is_not() -> None:
    record = make_record()
    sampler = record.sampler
    others = [
        replace(record, sampler=replace(sampler, temperature=0.7)),
        replace(record, sampler=replace(sampler, top_p=0.9)),
        replace(record, sampler=replace(sampler, min_p=0.1)),
        replace(record, sampler=replace(sampler, top_k=20)),
        replace(record, source="prose"),
        replace(record, rule="match"),
        replace(record, pair=replace(record.pair, draft="d" * 64)),
    ]
    assert len({generation_of(r).key for r in [record, *others]}) == len(others) + 1
    same = replace(record, sampler=replace(sampler, seed=8), run_seed=9, adapter="v0001", split="heldout")
    assert generation_of(same).key == generation_of(record).key


def test_another_temperature_is_no_drift() -> None:
    log = generations(steady(0, 60)) + generations(steady(1, 120, mean=0.3), temperature=1.2)
    found = check_streams(log, "v0002", [], DEFAULTS, 0)
    assert [(w.alarm, w.generations) for w in found] == [(False, 30), (False, 90)]
    assert [w.source for w in found] == ["code (temperature 0.8)", "code (temperature 1.2)"]
    together = generations(np.concatenate([steady(0, 60), steady(1, 120, mean=0.3)]))
    assert [w.alarm for w in check_streams(together, "v0002", [], DEFAULTS, 0)] == [True]


def test_only_the_champion_s_generations_count() -> None:
    own, other = generations(steady(0, 80)), generations(np.zeros(200), adapter="v0001")
    mixed = [*other[:100], *own[:40], *other[100:], *own[40:]]
    assert check_streams(mixed, "v0002", [], DEFAULTS, 0) == check_streams(own, "v0002", [], DEFAULTS, 0)
    assert check_streams(mixed, None, [], DEFAULTS, 0) == []


def test_the_bare_draft_is_a_champion_too() -> None:
    assert len(check_streams(generations(steady(0, 40), adapter=None), None, [], DEFAULTS, 0)) == 1


def test_there_is_nothing_to_say_before_the_first_generation_beyond_the_reference() -> None:
    assert check_streams(generations(steady(0, 30)), "v0002", [], DEFAULTS, 0) == []
    (found,) = check_streams(generations(steady(0, 31)), "v0002", [], DEFAULTS, 0)
    assert (found.kind, found.generations, found.reference) == ("drift", 1, steady(0, 31)[:30].mean())


def test_a_champion_that_does_worse_than_the_draft_before_it_is_a_fall() -> None:
    before = generations(np.concatenate([np.zeros(50), steady(0, 100)]), adapter="v0001")
    found = check_streams(generations(steady(1, 100, mean=0.4)), "v0002", before, DEFAULTS, 0)
    assert [(w.kind, w.alarm, w.generations) for w in found] == [("fall", True, 100), ("drift", False, 70)]
    assert found[0].reference == steady(0, 100).mean()


def test_a_fall_is_seen_from_the_first_generation_of_the_champion_on() -> None:
    before = generations(steady(0, 30), adapter="v0001")
    (found,) = check_streams(generations(steady(1, 1)), "v0002", before, DEFAULTS, 0)
    assert (found.kind, found.generations) == ("fall", 1)


def test_too_little_of_the_draft_before_or_of_another_stream_says_nothing_of_a_fall() -> None:
    own = generations(steady(1, 100))
    short = generations(steady(0, 29), adapter="v0001")
    warmer = generations(steady(0, 100), adapter="v0001", temperature=1.2)
    assert [w.kind for w in check_streams(own, "v0002", short + warmer, DEFAULTS, 0)] == ["drift"]


def test_alarms_come_first_then_sources_by_name() -> None:
    def stream(source: str, after: float) -> list[LoggedGeneration]:
        values = np.concatenate([steady(0, 40), steady(1, 120, mean=after)])
        return [LoggedGeneration("i", key_of(source), "g", None, float(value), "train") for value in values]

    log = stream("c", 0.6) + stream("b", 0.3) + stream("a", 0.6)
    found = check_streams(log, None, [], DEFAULTS, 0)
    assert [(w.source, w.alarm) for w in found] == [("b", True), ("a", False), ("c", False)]
    assert found == check_streams(log, None, [], DEFAULTS, 0)
