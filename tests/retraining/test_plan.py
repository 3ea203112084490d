"""What `retrain` would do next follows from the facts alone, and what is nearly done comes first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from draftloop.config import Config
from draftloop.evaluation.drift import StreamCheck
from draftloop.evaluation.looks import Look
from draftloop.registry.registry import Pointer
from draftloop.retraining.facts import Facts, Failed, History, recipe
from draftloop.retraining.plan import next_action
from draftloop.status import Overview

CONFIG = Config()
ALARM = StreamCheck("chat", "drift", 0.6, 0.4, 40, 3.0, 1.5, 12)
FAILED = Failed(60, "as before")
CALM = replace(ALARM, alarm_at=None, statistic=0.2)


def facts(**changes: Any) -> Facts:
    overview = Overview(
        failures_new=changes.pop("failures_new", 0),
        failures_used=changes.pop("failures_used", 0),
        candidate=changes.pop("candidate", None),
        heldout_prompts={str(i) for i in range(changes.pop("heldout", 12))},
    )
    values: dict[str, Any] = {
        "overview": overview,
        "pointer": Pointer(),
        "pending": None,
        "run": None,
        "drift_checks": (),
        "looks": (),
        "champion_generations": (0, 0),
        "minutes": None,
        "failed": None,
        "recipe": "as before",
        "target": None,
    }
    return Facts(**{**values, **changes})


def action(found: Facts, **options: bool) -> str:
    return next_action(found, CONFIG, **options).action


def test_too_few_failures_are_nothing_to_do_and_it_says_how_many_there_are() -> None:
    step = next_action(facts(failures_new=49), CONFIG)
    assert (step.action, step.why) == ("nothing", "49 unused failures of 50")


def test_enough_failures_are_trained_on() -> None:
    assert action(facts(failures_new=50)) == "train"
    assert action(facts(failures_new=50, drift_checks=(CALM,))) == "train"


def test_drift_acts_before_the_count_is_reached_but_not_on_a_handful() -> None:
    step = next_action(facts(failures_new=10, drift_checks=(ALARM, CALM)), CONFIG)
    assert step.action == "train"
    assert "acceptance of chat fell from 0.600 to 0.400" in step.why
    few = next_action(facts(failures_new=9, drift_checks=(ALARM,)), CONFIG)
    assert few.action == "nothing"
    assert "acceptance of chat fell" in few.why
    assert action(facts(failures_new=10, drift_checks=(CALM,))) == "nothing"


def test_the_interval_holds_a_training_back_and_nothing_else() -> None:
    early = facts(failures_new=50, minutes=29.0)
    assert "29 minutes ago" in next_action(early, CONFIG).why
    assert action(early) == "nothing"
    assert action(replace(early, minutes=30.0)) == "train"
    assert action(replace(early, run="r0001")) == "resume"
    assert action(facts(candidate="v0002", minutes=1.0)) == "gate"


def test_a_clock_that_went_backward_holds_a_training_back_and_says_so() -> None:
    step = next_action(facts(failures_new=50, minutes=-90.0), CONFIG)
    assert step.action == "nothing"
    assert "the clock went backward by 90 minutes" in step.why


def test_force_trains_whatever_is_in_the_way_but_needs_something_to_train_on() -> None:
    assert action(facts(failures_new=1, minutes=1.0, candidate="v0002", failed=FAILED), force=True) == "train"
    assert action(facts(failures_used=1), force=True) == "train"
    assert action(facts(), force=True) == "nothing"


def test_a_candidate_is_gated_before_anything_is_trained() -> None:
    step = next_action(facts(failures_new=500, candidate="v0002"), CONFIG)
    assert (step.action, step.subject) == ("gate", "v0002")


def test_a_candidate_waits_for_held_out_prompts() -> None:
    step = next_action(facts(failures_new=500, candidate="v0002", heldout=11), CONFIG)
    assert (step.action, step.subject) == ("wait", "v0002")
    assert step.why == "v0002 waits for the gate, with 11 of 12 held-out prompts; collect about 5 more prompts"


@pytest.mark.parametrize(("prompts", "more"), [(0, 70), (4, 66), (10, 60), (40, 60)])
def test_the_first_ten_prompts_that_all_train_are_counted_in_what_is_still_to_be_collected(
    prompts: int, more: int
) -> None:
    found = facts(candidate="v0002", heldout=0)
    found.overview.prompts.update(map(str, range(prompts)))
    assert f"with 0 of 12 held-out prompts; collect about {more} more prompts" in next_action(found, CONFIG).why


def test_a_training_that_was_cut_off_is_gone_on_with_before_a_candidate_is_gated() -> None:
    step = next_action(facts(run="r0003", candidate="v0002"), CONFIG)
    assert (step.action, step.subject) == ("resume", "r0003")


def test_a_promotion_that_was_cut_off_comes_first() -> None:
    step = next_action(facts(pending="v0002", run="r0003", drift_checks=(ALARM,), failures_new=500), CONFIG, force=True)
    assert (step.action, step.subject) == ("finish", "v0002")


LOOK = Look("look", "chat", 12, ("1",), 0.01)
CHECK = Look("check", None, 30, ("1",), 0.01)


def test_a_look_that_is_due_comes_before_a_candidate_and_once_a_run() -> None:
    promoted = facts(pointer=Pointer("v0002", "v0001", 2), looks=(LOOK,), candidate="v0003", failures_new=500)
    step = next_action(promoted, CONFIG)
    assert (step.action, step.subject) == ("check", "v0002")
    assert step.why == "held-out prompts that are new since v0002 was promoted: 12 of source chat"
    assert action(promoted, checked=True) == "gate"
    assert action(replace(promoted, run="r0001")) == "check"
    assert action(replace(promoted, looks=())) == "gate"


def test_a_check_after_an_alarm_says_what_fell() -> None:
    alarmed = facts(pointer=Pointer("v0002", "v0001", 2), looks=(CHECK,), drift_checks=(ALARM,))
    step = next_action(alarmed, CONFIG)
    assert (step.action, step.subject) == ("check", "v0002")
    assert step.why == "acceptance of chat fell from 0.600 to 0.400 (what it was), under v0002"


def test_a_failed_training_is_not_tried_again_on_the_same_failures() -> None:
    step = next_action(facts(failures_new=109, failed=FAILED), CONFIG)
    assert step.action == "nothing"
    assert "tried again with 1 more failures, with other settings, or with --force" in step.why
    assert action(facts(failures_new=110, failed=FAILED)) == "train"
    assert action(facts(failures_new=51, failures_used=59, failed=FAILED)) == "train"


def test_a_failed_training_is_tried_again_at_once_with_other_settings() -> None:
    assert action(facts(failures_new=60, failed=FAILED, recipe="another")) == "train"


def test_every_setting_of_a_training_makes_another_recipe_and_no_other_does() -> None:
    def changed(**sections: Any) -> str:
        return recipe(Config.model_validate(sections))

    assert recipe(CONFIG) == recipe(Config())
    for sections in (
        {"models": {"draft": "another"}},
        {"training": {"epochs": 9}},
        {"retrain": {"max_memory_gb": 3.0}},
        {"retrain": {"max_minutes": 3.0}},
        {"data": {"max_output_length": 9}},
    ):
        assert changed(**sections) != recipe(CONFIG)
    assert changed(models={"draft_vocabulary": "all"}) == recipe(CONFIG)  # which earlier draftloops did not know
    assert changed(speculative={"max_tokens": 9}, retrain={"niceness": 3, "keep_versions": 2}) == recipe(CONFIG)


def entry(**values: Any) -> dict[str, Any]:
    return {"when": 600.0, "outcome": "nothing", "trained": False, "generations": 0, "failures": 0, **values}


def test_the_interval_counts_from_the_last_training_by_order_not_by_time() -> None:
    lines = [entry(when=9000.0), entry(trained=True), entry(when=9000.0)]
    assert History(lines).minutes(1200.0) == 10.0
    assert History([entry()]).minutes(1200.0) is None
    assert History(lines).minutes(0.0) == -10.0


def test_a_noted_backward_clock_begins_the_interval_anew() -> None:
    lines = [entry(when=9000.0, trained=True), entry(when=600.0, clock=True)]
    assert History(lines).minutes(1200.0) == 10.0


IDS = [f"{i}" for i in range(100)]


def test_alarms_are_dealt_with_by_a_verdict_and_not_by_a_run_that_did_nothing() -> None:
    lines = [entry(outcome="refused", mark=IDS[50:70]), entry(generations=90), entry(outcome="failed", generations=95)]
    assert History(lines).settled(IDS) == 70
    assert History([]).settled(IDS) == 0


def test_where_the_log_was_deleted_everything_in_it_is_new() -> None:
    lines = [entry(outcome="promoted", mark=IDS[68:])]
    assert History(lines).settled(["new 1", "new 2"]) == 0
    assert History(lines).settled([*IDS[90:], "new 1"]) == 10
    assert History(lines).settled([*IDS[60:95], "new 1"]) == 35


def test_lines_of_older_versions_count_generations_as_far_as_there_are_so_many() -> None:
    lines = [entry(outcome="refused", generations=70)]
    assert History(lines).settled(IDS) == 70
    assert History(lines).settled(IDS[:69]) == 0


@pytest.mark.parametrize(("outcome", "expected"), [("failed", FAILED), ("nothing", FAILED), ("refused", None)])
def test_only_the_last_training_counts_as_failed(outcome: str, expected: Failed | None) -> None:
    last = entry(outcome=outcome, trained=True, trainable=60, recipe="as before")
    assert History([entry(outcome="failed", trained=True, trainable=10), last, entry()]).failed == expected


def test_the_lines_of_another_target_count_for_the_interval_alone() -> None:
    lines = [
        entry(outcome="refused", mark=IDS[:7], target="ours"),
        entry(outcome="refused", mark=IDS[:90], target="theirs", trained=True, when=660.0, checked=1),
        entry(outcome="failed", trained=True, target="theirs", when=660.0),
    ]
    found = History(lines, "ours")
    assert (found.settled(IDS), found.failed) == (7, None)
    assert found.minutes(660.0) == 0.0
    assert History(lines).settled(IDS) == 90
