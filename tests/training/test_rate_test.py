"""The rate test: the run after it is the run that is given its rate, and whatever happens in a trial stays there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import orjson
import pytest
from clocks import Driven
from workshop import Workshop, adapter_bytes, records_of

from draftloop.errors import Interrupted, TrainingFailed
from draftloop.models import adapter as lora
from draftloop.runtime.signals import StopRequest
from draftloop.training import loop as loop_module
from draftloop.training import rate_test as rate_test_module
from draftloop.training.batches import Batch
from draftloop.training.checkpoints import Checkpoints
from draftloop.training.losses import Sums
from draftloop.training.peak_rate import MOST_STEPS, MOST_TRIALS, SHARE
from draftloop.training.result import TrainResult
from draftloop.training.step import Learner
from draftloop.training.teacher import LiveTeacher
from draftloop.training.validation import ValidationScores, validate

pytestmark = pytest.mark.usefixtures("module_on_the_cpu")  # where a resumed run promises the same bits

SETTINGS = {
    "epochs": 60,
    "batch_size": 3,
    "replay_ratio": 0.3,
    "warmup_steps": 2,
    "steps_per_eval": 2,
    "save_every": 2,
    "steps_per_report": 1,
    "lora": {"rank": 3, "dropout": 0.2},
}
STEPS = 6  # made by a run here before it is stopped, of 420
A_TRIAL, A_STEP = 8, 3.0  # steps, seconds
RULE = 0.036  # of a draft of width 32 with scale 2


def workshop(root: Path, validation: int = 3, **settings) -> Workshop:
    shop = Workshop(root, {**SETTINGS, **settings})
    shop.write(records_of(shop.pair, 14))
    shop.write(records_of(shop.pair, validation, split="validation"))
    return shop


def stopped_at(step: int) -> dict:
    stop = StopRequest()

    def look(done: int, _steps: int) -> None:
        stop.requested = done >= step

    return {"stop": stop, "on_step": look}


class AtCheck(StopRequest):
    """Becomes true, or raises, when it is asked for the nth time."""

    def __init__(self, number: int, error: type[Exception] | None = None) -> None:
        super().__init__()
        self.left, self.error = number, error

    def __bool__(self) -> bool:
        self.left -= 1
        if self.left == 0 and self.error is not None:
            raise self.error
        return self.left <= 0


def run_to(shop: Workshop, step: int = STEPS, **keywords) -> dict:
    """What the checkpoint has after so many steps: tensors as bytes, and the progress without its time."""
    with pytest.raises(Interrupted, match=f"after step {step} of"):
        shop.train(**{**stopped_at(step), **keywords})
    return checkpoint(shop)


def checkpoint(shop: Workshop, run: str = "r0001") -> dict:
    (directory,) = (shop.runs / run / "checkpoints").glob("c*")
    tensors = mx.load(str(directory / "tensors.safetensors"))
    progress = orjson.loads((directory / "progress.json").read_bytes())
    kept = {name: value for name, value in progress.items() if name not in {"seconds", "pace", "sha256", "fit"}}
    return {"tensors": {name: bytes(memoryview(value)) for name, value in tensors.items()}, "progress": kept}


def rows(shop: Workshop, run: str = "r0001") -> list[dict]:
    measured = {"tokens_per_second", "peak_memory_gb", "seconds"}
    lines = map(orjson.loads, (shop.runs / run / "metrics.jsonl").read_bytes().splitlines())
    return [{name: value for name, value in row.items() if name not in measured} for row in lines]


def said(shop: Workshop, run: str = "r0001") -> str:
    return (shop.runs / run / "train.log").read_text()


def scripted(monkeypatch, outcome: Callable[[float], ValidationScores], before: float = 9.0) -> list[float]:
    """Trials end with these scores, and the draft begins with a loss of `before`; gives the rates that were tried."""
    tried: list[float] = []
    asked: list[object] = []

    def scores(_batches, evaluate) -> ValidationScores:
        learner = evaluate.__self__.learner
        if learner not in asked:  # before the first trial
            asked.append(learner)
            return ValidationScores(before, 0.5, 10, {})
        tried.append(evaluate.__self__.learner.peak)
        return outcome(tried[-1])

    monkeypatch.setattr(rate_test_module, "validate", scores)
    return tried


def best_at(best: float) -> Callable[[float], ValidationScores]:
    """A loss that is lowest there, and an acceptance that is highest where hardly anything is learned."""
    return lambda rate: ValidationScores(0.5 + abs(rate - best), 0.5 - rate, 10, {})


# the run after a test is the run that is given the rate


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 3, "epochs": 200},
        {"teacher": "none"},
        {"teacher": "logged"},
        {"proposals": 1, "answers": 1},
        {"loss": "ce", "weight_decay": 0.1},
    ],
    ids=str,
)
def test_a_run_that_chose_its_rate_is_bit_for_bit_the_run_that_is_given_it(tmp_path, settings):
    chosen = run_to(workshop(tmp_path / "auto", **settings))
    rate = chosen["progress"].pop("peak_rate")
    assert rate["by"] == "trials"
    assert len(rate["trials"]) >= 3
    given = run_to(workshop(tmp_path / "given", learning_rate=rate["rate"], **settings))
    assert given["progress"].pop("peak_rate") is None
    assert chosen == given
    assert rows(Workshop(tmp_path / "auto", SETTINGS)) == rows(Workshop(tmp_path / "given", SETTINGS))


def test_the_comparison_would_notice_another_rate(tmp_path):
    chosen = run_to(workshop(tmp_path / "auto"))
    other = run_to(workshop(tmp_path / "given", learning_rate=chosen["progress"]["peak_rate"]["rate"] * 2))
    assert chosen["tensors"] != other["tensors"]


def test_on_policy_samples_are_those_of_the_run_that_is_given_the_rate(tmp_path):
    settings = {"proposals": 1, "patience": 1000}
    auto, given = workshop(tmp_path / "auto", **settings), workshop(tmp_path / "given", **settings)
    run_to(auto, step=66)
    rate = checkpoint(auto)["progress"]["peak_rate"]["rate"]
    given.settings["learning_rate"] = rate
    run_to(given, step=66)
    ours, theirs = (orjson.loads((shop.runs / "r0001" / "texts-0.json").read_bytes()) for shop in (auto, given))
    assert [sample["ids"] for sample in ours] == [sample["ids"] for sample in theirs]
    assert len(ours) == 14
    assert checkpoint(auto)["tensors"] == checkpoint(given)["tensors"]


def test_a_test_starts_from_the_adapter_that_is_trained_on(tmp_path):
    def on_an_adapter(shop: Workshop) -> Workshop:
        lora.attach_fresh(shop.pair.draft, lora.shape_for(shop.pair.draft, shop.config.training.lora), seed=3)
        noise = {
            name: 0.01 * mx.random.normal(leaf.shape, key=mx.random.key(i))
            for i, (name, leaf) in enumerate(sorted(lora.adapter_parameters(shop.pair.draft).items()))
        }
        lora.load_parameters(shop.pair.draft, noise)
        return shop

    auto = run_to(on_an_adapter(workshop(tmp_path / "auto")))
    rate = auto["progress"].pop("peak_rate")
    given = run_to(on_an_adapter(workshop(tmp_path / "given", learning_rate=rate["rate"])))
    assert auto["tensors"] == given["tensors"]
    fresh = run_to(workshop(tmp_path / "fresh"))
    assert rate["trials"][0]["scores"] != fresh["progress"]["peak_rate"]["trials"][0]["scores"]


def test_trials_begin_where_the_run_begins_whatever_the_ones_before_did(tmp_path, monkeypatch):
    begins: list[dict[str, bytes]] = []
    train = Learner.train

    def trained(self: Learner, window, step, *rest):
        if step == 0:
            begins.append({name: bytes(memoryview(value)) for name, value in self.state().items()})
        return train(self, window, step, *rest)

    monkeypatch.setattr(Learner, "train", trained)
    run_to(workshop(tmp_path), step=1)
    assert len(begins) >= 4
    for state in begins:
        del state["optimizer.learning_rate"]  # the next step sets it
    assert all(state == begins[0] for state in begins)


# stopped, killed, resumed


@pytest.mark.parametrize("check", [2, 3, 7, 12, 18])
def test_a_run_stopped_in_the_test_makes_it_again_and_chooses_the_same(tmp_path, check):
    straight, cut = workshop(tmp_path / "straight"), workshop(tmp_path / "cut")
    expected = run_to(straight)
    with pytest.raises(Interrupted, match="after step 0 of"):
        cut.train(stop=AtCheck(check))
    before = checkpoint(cut)
    assert before["progress"]["peak_rate"] is None
    assert before["progress"]["skipped"] == 0
    with pytest.raises(Interrupted):
        cut.resume(**stopped_at(STEPS))
    assert checkpoint(cut) == expected


def test_a_run_killed_in_the_test_makes_it_again_and_chooses_the_same(tmp_path):
    class Killed(Exception):
        pass

    straight, cut = workshop(tmp_path / "straight"), workshop(tmp_path / "cut")
    expected = run_to(straight)
    with pytest.raises(Killed):
        cut.train(stop=AtCheck(9, Killed))
    with pytest.raises(Interrupted):
        cut.resume(**stopped_at(STEPS))
    assert checkpoint(cut) == expected


def test_a_run_resumed_after_the_test_keeps_the_rate_and_makes_no_other_test(tmp_path, monkeypatch):
    straight, cut = workshop(tmp_path / "straight"), workshop(tmp_path / "cut")
    expected = run_to(straight)
    run_to(cut, step=3)
    tried = scripted(monkeypatch, best_at(RULE))
    with pytest.raises(Interrupted):
        cut.resume(**stopped_at(STEPS))
    assert tried == []
    assert checkpoint(cut) == expected


# what a rate does to a trial


def test_the_best_rate_is_taken_and_said_and_kept(tmp_path, monkeypatch):
    tried = scripted(monkeypatch, best_at(RULE / 4))
    shop = workshop(tmp_path, patience=1)
    result = shop.train()
    assert tried == [RULE, RULE / 2, RULE / 4, RULE / 8]
    assert result.learning_rate == RULE / 4
    assert result.peak_rate is not None
    assert [trial.rate for trial in result.peak_rate.trials] == tried
    assert "learning rate 0.009: the best of 4, each tried for 8 steps; loss" in said(shop)
    assert shop.registry.manifest(result.version).metrics["peak_rate"]["rate"] == RULE / 4
    assert max(row["learning_rate"] for row in rows(shop) if row["kind"] == "train") <= RULE / 4


def test_where_no_rate_lowers_the_loss_the_rule_decides(tmp_path, monkeypatch):
    tried = scripted(monkeypatch, lambda rate: ValidationScores(1.0 + rate, 0.9, 10, {}), before=1.0)
    shop = workshop(tmp_path)
    chosen = run_to(shop, step=1)["progress"]["peak_rate"]
    assert min(tried) < RULE / 4
    assert (chosen["rate"], chosen["by"]) == (RULE, "width")
    assert chosen["why"] == f"no rate tried lowered the loss within {A_TRIAL} steps"


def test_a_training_that_goes_on_from_a_version_takes_its_measured_rate_and_makes_no_test(tmp_path, monkeypatch):
    tried = scripted(monkeypatch, best_at(RULE / 2))
    shop = workshop(tmp_path, patience=1)
    first = shop.train()
    number = len(tried)
    shop.pair = replace(shop.pair, adapter=first.version)  # the draft carries what was trained
    second = shop.train()
    assert (second.learning_rate, len(tried)) == (RULE / 2, number)
    assert f"learning rate {RULE / 2:g}, that of v0001, from which it goes on" in said(shop, "r0002")
    shop.pair = replace(shop.pair, adapter=second.version)
    assert shop.train().learning_rate == RULE / 2  # and so on from version to version
    assert len(tried) == number


def test_a_rate_of_which_too_many_batches_are_skipped_loses_and_the_run_knows_nothing_of_it(tmp_path, monkeypatch):
    work = Learner._unusable

    def unusable(self: Learner, examples, sums: Sums, norm: float):
        high = self.peak > RULE / 3
        return work(self, examples, Sums(sums.loss * 1e9, *sums[1:]) if high else sums, norm)

    monkeypatch.setattr(Learner, "_unusable", unusable)
    shop = workshop(tmp_path, max_skipped_batches=2)
    progress = run_to(shop)["progress"]
    outcomes = {trial["rate"]: trial["scores"] for trial in progress["peak_rate"]["trials"]}
    assert outcomes[RULE] is outcomes[RULE / 2] is None
    assert progress["peak_rate"]["rate"] <= RULE / 4
    assert (progress["skipped"], progress["skipped_in_row"], progress["skipped_records"]) == (0, 0, {})
    assert "skipped records" not in said(shop)
    assert "0.036 diverged" in said(shop)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_where_no_rate_gives_finite_scores_the_rule_decides_and_the_run_can_be_resumed(tmp_path, monkeypatch, number):
    tried = scripted(monkeypatch, lambda _: ValidationScores(number, 0.1, 10, {}))
    shop = workshop(tmp_path)
    chosen = run_to(shop, step=1)["progress"]["peak_rate"]
    assert len(tried) == MOST_TRIALS
    assert (chosen["rate"], chosen["by"]) == (RULE, "width")
    assert chosen["why"] == "training diverged with every rate tried"
    with pytest.raises(Interrupted, match="after step 2 of"):
        shop.resume(**stopped_at(2))
    assert checkpoint(shop)["progress"]["peak_rate"] == chosen


def test_a_trial_out_of_memory_is_made_again_in_smaller_parts(tmp_path, monkeypatch):
    work, refused = Learner._enqueued, []

    def enqueued(self: Learner, examples):
        if examples[0].record_id and len(examples) > 1:
            refused.append(self.steps)
            raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")
        return work(self, examples)

    monkeypatch.setattr(Learner, "_enqueued", enqueued)
    shop = workshop(tmp_path)
    progress = run_to(shop, step=2)["progress"]
    assert set(refused) == {A_TRIAL}  # the run has learned from it
    assert progress["peak_rate"]["by"] == "trials"
    assert "out of memory" in said(shop)


def test_a_test_that_not_one_example_fits_into_ends_the_run(tmp_path, monkeypatch):
    def enqueued(self: Learner, examples):
        if examples[0].record_id:
            raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")
        return work(self, examples)

    work = Learner._enqueued
    monkeypatch.setattr(Learner, "_enqueued", enqueued)
    with pytest.raises(TrainingFailed, match="one example alone"):
        workshop(tmp_path).train()


# where there is no test


def test_a_given_rate_is_not_tested(tmp_path, monkeypatch):
    tried = scripted(monkeypatch, best_at(RULE))
    shop = workshop(tmp_path, learning_rate=1e-3, patience=1)
    result = shop.train()
    assert tried == []
    assert (result.learning_rate, result.peak_rate) == (1e-3, None)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"epochs": 4}, "28 steps are too few for a test of rates, which needs 400"),
        ({"validation": 0}, "there is no validation generation to test rates on"),
        ({"val_batches": 0}, "there is no validation generation to test rates on"),
    ],
)
def test_without_enough_steps_or_validation_the_rule_decides_and_it_is_said(tmp_path, settings, why):
    shop = workshop(tmp_path, **settings)
    chosen = run_to(shop, step=1)["progress"]["peak_rate"]
    assert chosen == {"rate": RULE, "by": "width", "trials": [], "steps": 0, "why": why}
    assert f"learning rate 0.036, by the draft's width: {why}" in said(shop)


# time


@pytest.fixture
def clock(monkeypatch) -> Driven:
    """A clock on which a step of a trial takes A_STEP seconds, and all else none."""
    clock, train = Driven(), Learner.train

    def trained(self: Learner, *arguments):
        result = train(self, *arguments)
        clock.take(A_STEP)
        return result

    monkeypatch.setattr(loop_module, "WorkingTime", lambda: clock)
    monkeypatch.setattr(Learner, "train", trained)
    return clock


def timed(shop: Workshop) -> tuple[TrainResult, float]:
    """A run to its time limit, and the seconds that its test took."""
    result = shop.train()
    steps = sum(row["kind"] == "train" for row in rows(shop))
    return result, result.seconds - A_STEP * steps


def test_a_test_counts_towards_the_time_limit_and_takes_no_more_than_its_share(tmp_path, clock):
    result, seconds = timed(workshop(tmp_path, max_minutes=16.0, patience=1000))
    assert result.ended == "time limit"
    assert result.peak_rate is not None
    assert result.peak_rate.by == "trials"
    assert len(result.peak_rate.trials) == 3
    assert 3 * A_TRIAL * A_STEP < seconds <= SHARE * 960.0 + A_STEP
    assert result.seconds <= 960.0


def test_trials_are_as_short_as_three_of_them_need_to_fit_into_the_share(tmp_path, clock):
    whole = workshop(tmp_path / "whole", epochs=300, patience=1).train()
    limited = workshop(tmp_path / "limited", epochs=300, patience=1, max_minutes=20.0).train()
    assert whole.peak_rate is not None
    assert limited.peak_rate is not None
    assert whole.peak_rate.steps == MOST_STEPS
    assert limited.peak_rate.steps == int((SHARE * 1200.0 - 3 * A_STEP) / (3 * A_STEP)) == 12
    assert len(limited.peak_rate.trials) >= 3


def test_what_only_the_first_trial_takes_is_counted_once(tmp_path, clock, monkeypatch):
    """The teacher reads a record the first time that it is asked for it, here for twice the time of a step."""
    teach, read = LiveTeacher.teach, set()

    def slowly(self: LiveTeacher, batch: Batch):
        new = {example.record_id for example in batch.examples} - read
        clock.take(2 * A_STEP * bool(new and read))  # but for what is read before the test begins
        read.update(new)
        return teach(self, batch)

    monkeypatch.setattr(LiveTeacher, "teach", slowly)
    found = workshop(tmp_path, epochs=300, patience=1, max_minutes=40.0).train().peak_rate
    assert found is not None
    # To find out takes three steps and two readings; of what is left each step takes a reading, and thrice itself.
    assert found.steps == int((SHARE * 2400.0 - (3 + 2 * 2) * A_STEP) / ((3 + 2) * A_STEP)) == 14


def test_without_time_for_three_trials_the_rule_decides_at_once(tmp_path, clock):
    result, seconds = timed(workshop(tmp_path, max_minutes=5.0, patience=1000))
    assert result.peak_rate is not None
    assert (result.peak_rate.rate, result.peak_rate.by) == (RULE, "width")
    assert result.peak_rate.why == "the time limit leaves a test no more"
    assert seconds == 3 * A_STEP  # that show how long a step takes


def test_a_run_without_a_limit_makes_the_whole_test(tmp_path, clock):
    result, seconds = timed(workshop(tmp_path, patience=1))
    assert result.peak_rate is not None
    assert len(result.peak_rate.trials) >= 3
    assert seconds == A_STEP * A_TRIAL * len(result.peak_rate.trials)


# what is left of it


def test_a_test_leaves_the_draft_as_it_was(tmp_path, monkeypatch):
    before: list[dict[str, bytes]] = []
    save = Checkpoints.save

    def saved(self: Checkpoints, tensors, progress):
        before.append({name: bytes(memoryview(value)) for name, value in tensors.items() if "adapter." in name})
        return save(self, tensors, progress)

    monkeypatch.setattr(Checkpoints, "save", saved)
    shop = workshop(tmp_path)
    with pytest.raises(Interrupted):
        shop.train(stop=AtCheck(9))
    assert len(before) == 2
    assert before[0] == before[1]
    assert {f"adapter.{name}": value for name, value in adapter_bytes(shop.pair.draft).items()} == before[0]


def test_trials_are_scored_on_validation_generations_alone(tmp_path, monkeypatch):
    shop = workshop(tmp_path)
    shop.write(records_of(shop.pair, 5, split="heldout", seed=7))
    allowed = {record.id for record in shop.log.records() if record.split == "validation"}
    seen: set[str] = set()

    def scores(batches, evaluate) -> ValidationScores:
        seen.update(example.record_id for batch in batches for example in batch)
        return validate(batches, evaluate)

    monkeypatch.setattr(rate_test_module, "validate", scores)
    run_to(shop, step=1)
    assert seen == allowed
