from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from tiny import sampler

from draftloop.config import Training
from draftloop.training.dataset.batch_plan import STEPS_AT_ONE_TOKEN, Window, make_batch_plan, steps_for
from draftloop.training.dataset.examples import Example


def examples(count: int, source: str = "new") -> list[Example]:
    return [Example(f"{source}{i}", source, (1, 2) + (3,) * (3 + i % 5), 2, sampler()) for i in range(count)]


FAILURES, POOL = examples(21), {example.record_id: example for example in examples(9, "old")}


def planned(**settings):
    return make_batch_plan(FAILURES, POOL, Training(**{"batch_size": 4, "epochs": 3, **settings}))


def by_epoch(plan, epoch):
    return [e for w in plan.windows if w.epoch == epoch for batch in w.micro_batches for e in batch]


def test_every_epoch_has_each_failure_once_and_whole():
    plan = planned()
    for epoch in range(3):
        fresh = [example for example in by_epoch(plan, epoch) if example.source == "new"]
        assert sorted(fresh, key=lambda e: e.record_id) == sorted(FAILURES, key=lambda e: e.record_id)


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.5])
def test_the_replayed_share_of_the_supervised_tokens_of_each_epoch_is_the_configured_one(ratio):
    plan = planned(replay_ratio=ratio)
    for epoch in range(3):
        tokens = Counter()
        for example in by_epoch(plan, epoch):
            tokens[example.source] += len(example.labels)
        assert tokens["old"] / tokens.total() == pytest.approx(ratio, abs=0.5 / tokens.total() + 1e-9)
    assert plan.replay_share == pytest.approx(ratio, abs=0.01)


def test_replay_is_drawn_anew_each_epoch():
    plan = planned(replay_ratio=0.1)
    drawn = [Counter(e.record_id for e in by_epoch(plan, epoch) if e.source == "old") for epoch in range(3)]
    assert drawn[0] != drawn[1] or drawn[1] != drawn[2]


def test_without_a_pool_the_failures_stay_alone():
    plan = make_batch_plan(FAILURES, {}, Training(epochs=2, replay_ratio=0.5))
    assert plan.replay_share == 0
    assert sum(map(len, plan.micro_batches)) == 2 * len(FAILURES)


def test_the_order_is_a_function_of_seed_and_epoch():
    assert planned() == planned()
    assert planned() != planned(seed=1)
    first, second = (by_epoch(planned(replay_ratio=0.0), epoch) for epoch in (0, 1))
    assert first != second


def test_a_longer_training_begins_like_a_shorter_one():
    assert planned(epochs=3).windows[: len(planned(epochs=2).windows)] == planned(epochs=2).windows


def test_windows_end_with_their_epoch_and_the_last_one_may_be_smaller():
    plan = make_batch_plan(FAILURES, {}, Training(batch_size=4, epochs=2, gradient_accumulation_steps=4))
    assert [(window.epoch, len(window.micro_batches)) for window in plan.windows] == [(0, 4), (0, 2), (1, 4), (1, 2)]
    assert sorted(len(batch) for window in plan.windows for batch in window.micro_batches) == [1, 1] + [4] * 10


def test_micro_batches_hold_similar_lengths():
    plan = make_batch_plan(FAILURES, {}, Training(batch_size=4, epochs=1))
    spread = [
        max(len(e.ids) for e in batch) - min(len(e.ids) for e in batch)
        for window in plan.windows
        for batch in window.micro_batches
    ]
    assert max(spread) <= 1


def test_a_micro_batch_of_several_examples_keeps_to_its_supervised_tokens():
    plan = make_batch_plan(FAILURES, {}, Training(batch_size=8, batch_tokens=12, epochs=1))
    tokens = [sum(len(e.labels) for e in batch) for batch in plan.micro_batches]
    assert max(tokens) <= 12
    assert max(map(len, plan.micro_batches)) > 1
    assert sum(tokens) == sum(len(e.labels) for e in FAILURES)


def test_an_example_longer_than_a_micro_batch_may_be_is_one_of_its_own():
    plan = make_batch_plan(FAILURES, {}, Training(batch_tokens=1, epochs=1))
    assert [len(batch) for batch in plan.micro_batches] == [1] * len(FAILURES)


@pytest.mark.parametrize("steps", [1, 5, 6, 7, 40])
def test_a_plan_of_so_many_steps_begins_like_any_and_ends_there(steps):
    plan = make_batch_plan(FAILURES, POOL, Training(batch_size=4), steps)
    longer = make_batch_plan(FAILURES, POOL, Training(batch_size=4, epochs=50))
    assert plan.windows == longer.windows[:steps]


def test_a_plan_may_begin_with_a_later_epoch():
    later = make_batch_plan(FAILURES, POOL, Training(batch_size=4, epochs=1), first_epoch=2)
    assert later.windows == tuple(w for w in planned().windows if w.epoch == 2)


def failures_of(count: int, labels: int) -> list[Example]:
    return [Example(f"f{i}", "s", (1, 2) + (3,) * labels, 2, sampler()) for i in range(count)]


@pytest.mark.parametrize(("count", "labels"), [(1, 1), (1, 64), (5, 8), (20, 64), (200, 8), (300, 64)])
@pytest.mark.parametrize("accumulation", [1, 8])
def test_auto_makes_steps_that_grow_like_the_root_of_the_tokens_however_they_lie(count, labels, accumulation):
    settings = Training(gradient_accumulation_steps=accumulation)
    plan = make_batch_plan(failures_of(count, labels), POOL, settings)
    assert len(plan.windows) == max(1, round(STEPS_AT_ONE_TOKEN * (count * labels) ** 0.5))


def test_more_failures_get_more_steps_and_fewer_passes():
    plans = [make_batch_plan(failures_of(count, 64), {}, Training()) for count in (20, 80, 320)]
    for fewer, more in pairwise(plans):
        assert len(more.windows) == pytest.approx(2 * len(fewer.windows), abs=2)
        assert more.passes < fewer.passes


def test_any_training_makes_a_step():
    assert steps_for(0) == 1


def test_epochs_as_configured_are_so_many_passes():
    assert make_batch_plan(FAILURES, POOL, Training(epochs=3)).passes == 3


# -- the share of a source --------------------------------------------------------------------------------------------

CHATTY, MAIL = examples(190, "chatty"), examples(10, "mail")


def shares(windows) -> Counter[str]:
    tokens = Counter()
    for example in (e for window in windows for batch in window.micro_batches for e in batch):
        tokens[example.source] += len(example.labels)
    return Counter({source: count / tokens.total() for source, count in tokens.items()})


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
def test_a_chatty_source_has_no_more_than_its_share_of_any_epoch(share):
    plan = make_batch_plan([*CHATTY, *MAIL], {}, Training(epochs=3, max_source_share=share))
    for epoch in range(3):
        windows = [window for window in plan.windows if window.epoch == epoch]
        assert shares(windows)["chatty"] == pytest.approx(share, abs=1e-3)
    assert shares(make_batch_plan([*CHATTY, *MAIL], {}, Training(epochs=3, max_source_share=1.0)).windows) == shares(
        [Window(0, ((*CHATTY, *MAIL),))]
    )


def test_an_epoch_has_as_many_tokens_and_a_training_as_many_steps_as_without_a_bound():
    bounded, free = (make_batch_plan([*CHATTY, *MAIL], {}, Training(max_source_share=share)) for share in (0.8, 1.0))
    assert len(bounded.windows) == len(free.windows)
    drawn, everything = (sum(len(e.labels) for e in by_epoch(plan, 0)) for plan in (bounded, free))
    assert drawn == everything


def test_no_failure_of_the_chatty_source_is_lost_to_the_training():
    plan = make_batch_plan([*CHATTY, *MAIL], {}, Training(epochs=8))
    epochs = [{e.record_id for e in by_epoch(plan, epoch) if e.source == "chatty"} for epoch in range(8)]
    assert all(len(drawn) < len(CHATTY) for drawn in epochs)
    assert set().union(*epochs) == {example.record_id for example in CHATTY}


def test_what_is_replayed_of_a_source_counts_for_its_share_too():
    pool = {example.record_id: example for example in examples(50, "chatty")}
    plan = make_batch_plan([*CHATTY, *MAIL], pool, Training(epochs=1))
    assert shares(plan.windows)["chatty"] == pytest.approx(0.8, abs=1e-3)
    assert plan.replay_share == pytest.approx(0.2, abs=0.01)


def test_replay_is_shared_out_like_the_failures():
    pool = {example.record_id: example for example in (*examples(190, "chatty"), *examples(10, "old"))}
    plan = make_batch_plan(examples(40, "new"), pool, Training(epochs=2, replay_ratio=0.5))
    assert shares(plan.windows)["chatty"] == pytest.approx(0.4, abs=0.01)


def test_samples_count_for_the_source_of_their_failure():
    """A client that asks for one token at a time has few tokens of failures, and long samples."""
    short = [Example(f"s{i}", "short", (1, 2, 3), 2, sampler()) for i in range(50)]
    samples = [Example(f"s{i}/again0", "short", (1, 2) + (3,) * 40, 2, sampler()) for i in range(50)]
    plan = make_batch_plan([*short, *MAIL, *samples], {}, Training(epochs=1))
    assert shares(plan.windows)["short"] == pytest.approx(0.8, abs=1e-3)


def test_one_source_alone_is_planned_as_ever_and_so_are_several_below_the_bound():
    for failures in (CHATTY, [*examples(60, "a"), *examples(40, "b")]):
        plans = [make_batch_plan(failures, POOL, Training(epochs=2, max_source_share=share)) for share in (0.8, 1.0)]
        assert plans[0] == plans[1]


def test_a_bounded_plan_is_a_function_of_the_seed_and_not_of_the_order_of_other_sources():
    plans = [make_batch_plan([*one, *other], {}, Training(epochs=2)) for one, other in [(CHATTY, MAIL), (MAIL, CHATTY)]]
    assert plans[0] == plans[1]
    assert plans[0] != make_batch_plan([*CHATTY, *MAIL], {}, Training(epochs=2, seed=1))
