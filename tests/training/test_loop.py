from __future__ import annotations

import math
import os
import re
import signal
from pathlib import Path

import mlx.core as mx
import orjson
import pytest
from clocks import Ticking
from workshop import Workshop, adapter_bytes, records_of

from draftloop.errors import Interrupted, TrainingFailed
from draftloop.models import adapter as lora
from draftloop.runtime.signals import StopRequest
from draftloop.training import loop as loop_module
from draftloop.training.dataset.batch_plan import Window
from draftloop.training.dataset.curriculum import Curriculum
from draftloop.training.run import RunDirectory
from draftloop.training.step import Learner, SkippedBatch, learning_rate
from draftloop.training.validation import ValidationScores

pytestmark = pytest.mark.usefixtures("module_on_the_cpu")  # where a resumed run promises the same bits

EVERYTHING = {
    "epochs": 3,
    "batch_size": 3,
    "gradient_accumulation_steps": 3,
    "replay_ratio": 0.3,
    "learning_rate": 5e-3,
    "warmup_steps": 2,
    "steps_per_eval": 2,
    "save_every": 2,
    "steps_per_report": 2,
    "lora": {"rank": 3, "dropout": 0.2},
}
STEPS = 9


def workshop(root: Path, validation: int = 3, **settings) -> Workshop:
    """14 failures: seven micro-batches and three windows an epoch, the last of one micro-batch.

    The validation records say what some failures say, so that learning shows on them.
    """
    shop = Workshop(root, {**EVERYTHING, **settings})
    shop.write(records_of(shop.pair, 14))
    shop.write(records_of(shop.pair, validation, split="validation"))
    return shop


def stopped_at(step: int) -> tuple[StopRequest, dict]:
    """A request that is made when `step` steps are done."""
    stop = StopRequest()

    def look(done: int, _steps: int) -> None:
        stop.requested = done >= step

    return stop, {"stop": stop, "on_step": look}


def rows(shop: Workshop, run: str = "r0001", kind: str | None = None) -> list[dict]:
    lines = (shop.runs / run / "metrics.jsonl").read_bytes().splitlines()
    return [row for row in map(orjson.loads, lines) if kind in (None, row["kind"])]


def said(shop: Workshop) -> str:
    return (shop.runs / "r0001" / "train.log").read_text()


def without_time(values: dict) -> dict:
    measured = {"seconds", "peak_memory_gb", "path", "run_path"}
    return {name: value for name, value in values.items() if name not in measured}


def checkpoint(shop: Workshop) -> tuple[dict[str, bytes], dict]:
    """The tensors of the checkpoint by name; and the progress without its time."""
    (directory,) = (shop.runs / "r0001" / "checkpoints").glob("c*")
    tensors = mx.load(str(directory / "tensors.safetensors"))
    progress = orjson.loads((directory / "progress.json").read_bytes())
    return {name: bytes(memoryview(value)) for name, value in tensors.items()}, {
        name: value for name, value in progress.items() if name not in {"seconds", "pace", "sha256", "fit"}
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    shop = workshop(tmp_path_factory.mktemp("uninterrupted"))
    result = shop.train()
    assert result.steps == result.planned_steps == STEPS
    assert result.best_step > 4  # or the comparisons below would be of the start
    return shop, result


@pytest.mark.parametrize("k", range(STEPS + 1))
@pytest.mark.some(3)
def test_stopping_after_any_step_and_resuming_ends_in_the_same_bits(tmp_path, uninterrupted, k):
    reference, expected = uninterrupted
    shop = workshop(tmp_path)
    with pytest.raises(Interrupted, match=rf"after step {k} of {STEPS} of run r0001; `train --resume r0001`"):
        shop.train(**stopped_at(k)[1])
    assert shop.registry.versions() == []
    result = shop.resume()
    name = "adapters.safetensors"
    assert (Path(result.path) / name).read_bytes() == (Path(expected.path) / name).read_bytes()
    assert without_time(vars(result)) == without_time(vars(expected))
    assert rows(shop, kind="validation") == rows(reference, kind="validation")
    steps = [row["step"] for row in rows(shop, kind="train")]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("k", [1, 4, 5])
def test_a_run_of_steps_whose_arrays_are_made_ahead_is_resumed_to_the_same_bits(tmp_path, k):
    settings = {"epochs": 1, "gradient_accumulation_steps": 1}
    straight, cut = workshop(tmp_path / "straight", **settings), workshop(tmp_path / "cut", **settings)
    expected = straight.train()
    with pytest.raises(Interrupted):
        cut.train(**stopped_at(k)[1])
    found = cut.resume()
    assert without_time(vars(found)) == without_time(vars(expected))
    assert weights_of(found) == weights_of(expected)
    assert found.best_step > 4


@pytest.mark.parametrize(("k", "later"), [(1, 4), (3, 5), (4, 8)])
def test_optimizer_random_state_and_position_agree_after_a_resumption_too(tmp_path, k, later):
    straight, resumed = workshop(tmp_path / "straight"), workshop(tmp_path / "resumed")
    with pytest.raises(Interrupted):
        straight.train(**stopped_at(later)[1])
    with pytest.raises(Interrupted):
        resumed.train(**stopped_at(k)[1])
    with pytest.raises(Interrupted):
        resumed.resume(**stopped_at(later)[1])
    tensors, progress = checkpoint(straight)
    assert checkpoint(resumed) == (tensors, progress)
    assert progress["step"] == later
    assert {name.split(".")[0] for name in tensors} == {"adapter", "optimizer", "best", "random", "accepted"}


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, uninterrupted):
    class Killed(Exception):
        pass

    def kill(done: int, _steps: int) -> None:
        if done == 7:
            raise Killed

    shop = workshop(tmp_path)
    with pytest.raises(Killed):
        shop.train(on_step=kill)
    assert checkpoint(shop)[1]["step"] == 6
    result = shop.resume("r0001")
    name = "adapters.safetensors"
    assert (Path(result.path) / name).read_bytes() == (Path(uninterrupted[1].path) / name).read_bytes()


def test_the_comparison_would_notice_another_seed(tmp_path, uninterrupted):
    other = workshop(tmp_path, seed=1).train()
    name = "adapters.safetensors"
    assert (Path(other.path) / name).read_bytes() != (Path(uninterrupted[1].path) / name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_writes_a_checkpoint_and_says_how_to_go_on(tmp_path, number):
    def press(done: int, _steps: int) -> None:
        if done == 2:
            os.kill(os.getpid(), number)

    shop = workshop(tmp_path)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="train --resume r0001") as stopped:
        shop.train(on_step=press)
    assert stopped.value.exit_code == 130
    assert signal.getsignal(number) == before
    assert checkpoint(shop)[1]["step"] == 2


def test_a_stop_in_the_middle_of_a_window_gives_up_that_window_alone(tmp_path, uninterrupted):
    class ThirdTime(StopRequest):
        asked = 0

        def __bool__(self) -> bool:
            self.asked += 1
            return self.asked == 6  # a validation batch, the first step's three micro-batches, and one more

    shop = workshop(tmp_path)
    with pytest.raises(Interrupted, match="after step 1 of"):
        shop.train(stop=ThirdTime())
    result = shop.resume()
    name = "adapters.safetensors"
    assert (Path(result.path) / name).read_bytes() == (Path(uninterrupted[1].path) / name).read_bytes()


def scripted(monkeypatch, acceptances: list[float]) -> list[dict[str, bytes]]:
    """Validation says these acceptances in turn, the last one for ever; returns the weights that each was said of."""
    seen: list[dict[str, bytes]] = []

    def validate(_batches, evaluate):
        learner = evaluate.__self__.learner
        seen.append({n: bytes(memoryview(a)) for n, a in lora.adapter_parameters(learner.draft).items()})
        return ValidationScores(1.0, acceptances[min(len(seen), len(acceptances)) - 1], 10, {})

    monkeypatch.setattr(loop_module, "validate", validate)
    return seen


def weights_of(result) -> dict[str, bytes]:
    found = mx.load(f"{result.path}/adapters.safetensors")
    return {name: bytes(memoryview(value)) for name, value in found.items()}


def test_the_weights_of_the_best_acceptance_are_kept(tmp_path, monkeypatch):
    seen = scripted(monkeypatch, [0.1, 0.3, 0.2])
    shop = workshop(tmp_path)
    result = shop.train()
    assert result.best_step == 2
    assert (result.val_acceptance_before, result.val_acceptance_after) == (0.1, 0.3)
    assert weights_of(result) == seen[1] != seen[-1]
    assert {n: bytes(memoryview(a)) for n, a in lora.adapter_parameters(shop.pair.draft).items()} == seen[1]


def test_when_nothing_gets_better_the_start_is_kept(tmp_path, monkeypatch):
    seen = scripted(monkeypatch, [0.5, 0.49])
    result = workshop(tmp_path, patience=100).train()
    assert result.best_step == 0
    assert weights_of(result) == seen[0]
    assert result.ended == "finished"


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_first_validation_that_is_not_finite_ends_the_training_at_once(tmp_path, monkeypatch, number):
    seen = scripted(monkeypatch, [number])
    shop = workshop(tmp_path)
    with pytest.raises(TrainingFailed, match=f"first validation gives loss 1.0 and acceptance {number}: .* no adapter"):
        shop.train()
    assert len(seen) == 1
    assert shop.registry.versions() == []
    assert not (shop.runs / "r0001" / "checkpoints").exists()


def test_a_later_validation_that_is_not_finite_is_never_the_best_and_slows_the_training_down(tmp_path, monkeypatch):
    seen = scripted(monkeypatch, [0.3, 0.5, math.nan, 0.4])
    shop = workshop(tmp_path, patience=100)
    result = shop.train()
    assert (result.best_step, result.val_acceptance_after) == (2, 0.5)
    assert weights_of(result) == seen[1] != seen[2]
    assert shop.registry.manifest(result.version).metrics["slowed"] == 1
    assert "acceptance per position nan of 0.3000): back to the weights of step 2" in said(shop)


def test_patience_stops_early(tmp_path, monkeypatch):
    seen = scripted(monkeypatch, [0.5, 0.6, 0.55])
    result = workshop(tmp_path, patience=2).train()
    assert result.ended == "early stop"
    assert result.steps == 6
    assert len(seen) == 4


def test_patience_counts_across_a_resumption(tmp_path, monkeypatch):
    scripted(monkeypatch, [0.5, 0.6, 0.55])
    shop = workshop(tmp_path, patience=2)
    with pytest.raises(Interrupted):
        shop.train(**stopped_at(5)[1])
    result = shop.resume()
    assert (result.ended, result.steps, result.best_step) == ("early stop", 6, 2)


def test_a_time_limit_ends_the_training_with_a_validation(tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "WorkingTime", Ticking)
    shop = workshop(tmp_path, max_minutes=0.1)
    result = shop.train()
    assert result.ended == "time limit"
    assert 0 < result.steps < STEPS // 3
    assert result.val_acceptance_after is not None
    manifest = shop.registry.manifest(result.version)
    failures = {record.id for record in shop.log.records({"train"})}
    assert set(manifest.record_ids) | set(manifest.passed_over_ids) == failures
    assert set(manifest.record_ids).isdisjoint(manifest.passed_over_ids)
    assert manifest.passed_over_ids


def test_texts_get_a_share_of_the_time_limit_and_what_they_took_counts(tmp_path, monkeypatch):
    clock, window = Ticking(), Curriculum.window
    waited = []

    def slow(self: Curriculum, step: int, enough) -> Window:
        if step == 3:
            start = clock.seconds
            while not enough():
                clock.take(60.0)
            waited.append(clock.seconds - start)
            clock.take(3600.0)  # and one that does not look
        return window(self, step, enough)

    monkeypatch.setattr(loop_module, "WorkingTime", lambda: clock)
    monkeypatch.setattr(Curriculum, "window", slow)
    result = workshop(tmp_path, max_minutes=30.0).train()
    assert waited[0] == pytest.approx(30 * 60 / 3, abs=120)
    assert (result.ended, result.steps) == ("time limit", 4)


@pytest.mark.parametrize("computing", [False, True])
def test_a_pause_uses_up_no_time_limit_and_work_does(tmp_path, monkeypatch, computing):
    """A SIGSTOP or a lid that is closed for ten minutes, before the first step and in the third."""
    clock, window = Ticking(), Curriculum.window

    def paused(self: Curriculum, step: int, enough) -> Window:
        if step in (0, 3):
            clock.take(600.0, computing=computing)
        return window(self, step, enough)

    monkeypatch.setattr(loop_module, "WorkingTime", lambda: clock)
    monkeypatch.setattr(Curriculum, "window", paused)
    result = workshop(tmp_path, max_minutes=9.0).train()
    assert (result.ended, result.steps) == (("time limit", 1) if computing else ("finished", STEPS))
    assert (result.seconds > 600) == computing


def test_a_run_tells_how_far_it_is_and_forgets_it_at_the_end(tmp_path, monkeypatch):
    clock, told = Ticking(), []
    monkeypatch.setattr(loop_module, "WorkingTime", lambda: clock)
    shop = workshop(tmp_path, max_minutes=60.0)
    result = shop.train(on_step=lambda *_: told.append(RunDirectory(shop.runs / "r0001").progress()))
    after_a_step = [one for one in told if one is not None and one["seconds_left"] is not None]
    assert [one["step"] for one in after_a_step] == list(range(2, STEPS))  # the first says nothing of the pace
    first = after_a_step[0]
    assert (first["process"], first["steps"]) == (os.getpid(), STEPS)
    assert 0 < after_a_step[-1]["seconds_left"] < first["seconds_left"] < 3600
    assert RunDirectory(Path(result.run_path)).progress() is None


def test_a_draft_is_validated_before_it_writes(tmp_path):
    shop = workshop(tmp_path, epochs=6, proposals=2, steps_per_eval=100, gradient_accumulation_steps=1)
    result = shop.train()
    validated = [row["step"] for row in rows(shop, kind="validation")]
    assert len(validated) == 4
    assert validated[-1] == result.steps


def test_records_that_were_only_ever_skipped_are_not_said_to_be_learned_from(tmp_path, monkeypatch):
    shop = workshop(tmp_path, batch_size=1, gradient_accumulation_steps=1, replay_ratio=0.0)
    never = next(iter(shop.log.records({"train"}))).id
    work = Learner._unusable

    def unusable(self, examples, sums, norm):
        ids = tuple(example.record_id for example in examples)
        return SkippedBatch(ids, "of the test") if never in ids else work(self, examples, sums, norm)

    monkeypatch.setattr(Learner, "_unusable", unusable)
    result = shop.train()
    manifest = shop.registry.manifest(result.version)
    assert manifest.passed_over_ids == (never,)
    assert never not in manifest.record_ids
    assert result.lessons.learned_from.positions < sum(len(r.target_output) for r in shop.log.records({"train"}))


def test_a_time_limit_that_leaves_no_step_fails_and_makes_no_version(tmp_path):
    shop = workshop(tmp_path, max_minutes=1e-9)
    with pytest.raises(
        TrainingFailed, match=r"limit is 1e-09 minutes, and not one step was made.*retrain\.max_minutes"
    ):
        shop.train()
    assert shop.registry.versions() == []


def test_without_validation_the_last_weights_are_kept(tmp_path):
    result = workshop(tmp_path, validation=0).train()
    assert result.best_step is None
    assert result.val_loss_before is result.val_loss_after is result.val_acceptance_after is None
    assert result.steps == STEPS


def test_validation_is_measured_and_not_made_up(tmp_path, uninterrupted):
    """Its figures are those of the model: other weights and other records give others, and none is a round number."""
    shop, result = uninterrupted
    found = rows(shop, kind="validation")
    assert len({row["loss"] for row in found}) == len(found) == 6
    assert result.val_loss_before == found[0]["loss"] > 0
    fewer = workshop(tmp_path, validation=2).train()
    assert fewer.val_loss_before != result.val_loss_before


def test_metrics_have_all_that_was_promised(uninterrupted):
    shop, result = uninterrupted
    train = rows(shop, kind="train")
    assert [row["step"] for row in train] == [2, 4, 6, 8, 9]
    assert set(train[0]) == {
        "kind",
        "step",
        "epoch",
        "loss",
        "acceptance",
        "gradient_norm",
        "learning_rate",
        "tokens_per_second",
        "peak_memory_gb",
        "skipped_batches",
        "tokens",
        "seconds",
    }
    assert train[-1]["tokens"] == result.tokens
    assert all(row["loss"] > 0 and row["gradient_norm"] > 0 and row["tokens_per_second"] > 0 for row in train)
    assert [row["epoch"] for row in train] == [1, 2, 2, 3, 3]


# a learning rate that wrecks the draft

WRECKING = {"learning_rate": 0.5, "epochs": 8, "warmup_steps": 0, "steps_per_eval": 2, "patience": 50}


def test_a_rate_that_makes_the_draft_worse_than_it_was_is_halved_from_the_best_weights_on(tmp_path):
    shop = workshop(tmp_path, **WRECKING)
    result = shop.train()
    slowed = shop.registry.manifest(result.version).metrics["slowed"]
    assert slowed > 0
    log = (Path(result.run_path) / "train.log").read_text()
    assert log.count("worse than it was at the start") == slowed
    assert result.val_acceptance_after >= result.val_acceptance_before
    rates = [row["learning_rate"] for row in rows(shop, kind="train")]
    scheduled = [
        learning_rate(row["step"] - 1, result.planned_steps, result.learning_rate, WRECKING["warmup_steps"])
        for row in rows(shop, kind="train")
    ]
    assert rates[-1] == pytest.approx(scheduled[-1] / 2**slowed)


def test_a_run_stopped_after_it_was_slowed_down_is_resumed_to_the_same_bits(tmp_path):
    whole = workshop(tmp_path / "whole", **WRECKING)
    expected = whole.train()
    cut = workshop(tmp_path / "cut", **WRECKING)
    _, keywords = stopped_at(7)
    with pytest.raises(Interrupted):
        cut.train(**keywords)
    found = cut.resume()
    assert adapter_bytes(cut.pair.draft) == adapter_bytes(whole.pair.draft)
    assert found.val_acceptance_after == expected.val_acceptance_after


def test_lines_name_quantities_and_units_as_tables_do(uninterrupted):
    line = next(line for line in said(uninterrupted[0]).splitlines() if "step 2/9" in line)
    assert re.search(r"acceptance per position 0\.\d{4}, .* [\d,]+ tokens/s, peak memory [\d.e-]+ GB, skipped 0$", line)
