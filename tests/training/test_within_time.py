"""A training with a time limit: its schedule ends where the time does, whatever the pace, and after a stop too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from clocks import Driven
from workshop import Workshop, records_of

from draftloop.errors import Interrupted, RunError
from draftloop.runtime.signals import StopRequest
from draftloop.training import loop as loop_module
from draftloop.training.checkpoints import Checkpoints
from draftloop.training.dataset.curriculum import Curriculum
from draftloop.training.result import TrainResult
from draftloop.training.step import Learner, learning_rate

pytestmark = pytest.mark.usefixtures("module_on_the_cpu")  # where a resumed run promises the same bits

A_STEP, VALIDATION = 3.0, 2.0
SETTINGS: dict[str, Any] = {
    "epochs": 40,
    "batch_size": 3,
    "replay_ratio": 0.0,
    "learning_rate": 1e-3,
    "warmup_steps": 4,
    "steps_per_eval": 10,
    "save_every": 1000,
    "steps_per_report": 1,
    "patience": 1000,
    "lora": {"rank": 2},
}


def constant(_step: int) -> float:
    return A_STEP


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes steps, validations, checkpoints and texts take as long as it is told."""
    train, validate, save, window = Learner.train, loop_module.validate, Checkpoints.save, Curriculum.window

    def driven(step: Callable[[int], float] = constant, saving: float = 0.0, writing: float = 0.0) -> None:
        clock = Driven()
        monkeypatch.setattr(loop_module, "WorkingTime", lambda: clock)

        def trained(self: Learner, one: Any, number: int, *rest: Any) -> Any:
            found = train(self, one, number, *rest)
            clock.take(step(number))
            return found

        def validated(*arguments: Any) -> Any:
            found = validate(*arguments)
            clock.take(VALIDATION)
            return found

        def saved(self: Checkpoints, *arguments: Any) -> Path:
            clock.take(saving)
            return save(self, *arguments)

        def written(self: Curriculum, number: int, enough: Any) -> Any:
            if number in self.begins:
                clock.take(writing)
            return window(self, number, enough)

        monkeypatch.setattr(Learner, "train", trained)
        monkeypatch.setattr(loop_module, "validate", validated)
        monkeypatch.setattr(Checkpoints, "save", saved)
        monkeypatch.setattr(Curriculum, "window", written)

    return driven


def workshop(root: Path, **settings: Any) -> Workshop:
    """10 failures: four steps an epoch, 160 in all."""
    shop = Workshop(root, {**SETTINGS, **settings})
    shop.write(records_of(shop.pair, 10))
    shop.write(records_of(shop.pair, 2, split="validation"))
    return shop


def rates(shop: Workshop) -> list[float]:
    lines = map(orjson.loads, (shop.runs / "r0001" / "metrics.jsonl").read_bytes().splitlines())
    return [row["learning_rate"] for row in lines if row["kind"] == "train"]


def said(shop: Workshop, what: str) -> list[str]:
    lines = (shop.runs / "r0001" / "train.log").read_text().splitlines()
    return [line.split(maxsplit=2)[2] for line in lines if what in line]


def stopped_at(step: int) -> dict[str, Any]:
    """Asks to stop when `step` steps are done."""
    stop = StopRequest()

    def look(done: int, _steps: int) -> None:
        stop.requested = done >= step

    return {"stop": stop, "on_step": look}


def scheduled(first: int, fitting: int) -> list[float]:
    """Of steps `first` to `fitting` - 1, where the schedule ends there."""
    peak, warmup_steps = SETTINGS["learning_rate"], SETTINGS["warmup_steps"]
    return [learning_rate(step, fitting, peak, warmup_steps) for step in range(first, fitting)]


def weights(result: TrainResult) -> bytes:
    return (Path(result.path) / "adapters.safetensors").read_bytes()


def test_the_schedule_ends_at_the_last_step_that_fits(tmp_path, drive):
    drive()
    shop = workshop(tmp_path, max_minutes=2.0)
    result = shop.train()
    fitting = 36  # 108 seconds; and five validations of two, the first before all steps and the last at the end
    assert (result.ended, result.steps, result.planned_steps) == ("time limit", fitting, 160)
    assert result.seconds == 118.0
    assert said(shop, "a step:") == [
        "3 s a step: 36 of 160 planned steps fit into 2 minutes; the schedule ends there",
    ]
    assert rates(shop)[2:] == scheduled(2, fitting)
    assert rates(shop)[-1] == pytest.approx(SETTINGS["learning_rate"] / (fitting - SETTINGS["warmup_steps"]))
    assert said(shop, "step 36/")[0].startswith("step 36/36,")


def test_checkpoints_and_new_texts_are_counted_in(tmp_path, drive):
    drive(saving=4.0, writing=9.0)
    shop = workshop(tmp_path, max_minutes=2.0, save_every=10, proposals=1)
    result = shop.train()
    assert result.ended == "time limit"
    assert 120.0 - A_STEP - VALIDATION - 4.0 < result.seconds <= 120.0
    assert rates(shop)[-1] < 0.06 * SETTINGS["learning_rate"]


def test_where_everything_fits_the_limit_changes_nothing(tmp_path, drive):
    drive()
    free, limited = workshop(tmp_path / "free", epochs=6), workshop(tmp_path / "limited", epochs=6, max_minutes=60.0)
    one, other = free.train(), limited.train()
    assert (other.ended, other.steps) == ("finished", 24)
    assert rates(limited) == rates(free)
    assert weights(other) == weights(one)
    assert said(limited, "a step:") == ["3 s a step: all 24 planned steps fit into 60 minutes"]


def slower(step: int) -> float:
    return A_STEP if step < 12 else 3 * A_STEP


def faster(step: int) -> float:
    return A_STEP if step < 12 else A_STEP / 3


def uneven(step: int) -> float:
    return (1.0, 6.0, 2.0)[step % 3]


def compiling(step: int) -> float:
    return 40.0 if step == 0 else A_STEP


@pytest.mark.parametrize("pace", [slower, faster, uneven, compiling])
def test_another_pace_is_followed_to_the_end_of_the_schedule(tmp_path, drive, pace):
    drive(pace)
    shop = workshop(tmp_path, max_minutes=2.0)
    result = shop.train()
    last = pace(result.steps)
    assert result.ended == "time limit"
    assert 120.0 - 2 * max(last, A_STEP) - VALIDATION <= result.seconds <= 120.0 + last + VALIDATION
    assert rates(shop)[-1] <= 0.15 * max(rates(shop))


def test_a_pace_that_is_another_by_far_is_said_again(tmp_path, drive):
    drive(slower)
    shop = workshop(tmp_path, max_minutes=2.0)
    result = shop.train()
    lines = said(shop, "planned steps fit into")
    assert len(lines) >= 2
    assert lines[0].startswith("3 s a step: 36 of 160")
    fits = [int(line.split()[4]) for line in lines]
    assert fits == sorted(fits, reverse=True)
    assert fits[-1] >= result.steps


def test_one_step_that_takes_the_rest_of_the_time_is_the_last(tmp_path, drive):
    drive(lambda step: 300.0 if step == 9 else A_STEP)
    result = workshop(tmp_path, max_minutes=2.0).train()
    assert (result.ended, result.steps) == ("time limit", 10)
    assert result.val_acceptance_after is not None


@pytest.mark.parametrize("k", [0, 1, 2, 3, 17, 35])
@pytest.mark.some(3)
def test_stopping_after_any_step_and_resuming_ends_at_the_same_step_in_the_same_bits(tmp_path, drive, k):
    drive()
    straight, cut = workshop(tmp_path / "straight", max_minutes=2.0), workshop(tmp_path / "cut", max_minutes=2.0)
    expected = straight.train()
    with pytest.raises(Interrupted, match=rf"after step {k} of"):
        cut.train(**stopped_at(k))
    found = cut.resume()
    assert (found.ended, found.steps, found.seconds) == (expected.ended, expected.steps, expected.seconds)
    assert weights(found) == weights(expected)


def test_a_stop_names_the_steps_that_fit(tmp_path, drive):
    drive()
    shop = workshop(tmp_path, max_minutes=2.0)
    with pytest.raises(Interrupted, match="after step 5 of 36 of run r0001"):
        shop.train(**stopped_at(5))


# more time


def description(shop: Workshop) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((shop.runs / "r0001" / "run.yaml").read_text())
    return found


def test_a_run_that_its_limit_ended_goes_on_where_it_is_given_more_and_gives_another_version(tmp_path, drive):
    drive()
    shop = workshop(tmp_path, max_minutes=2.0)
    first = shop.train()
    found = shop.resume("r0001", more_minutes=1.0)
    fitting = 36 + 18  # 54 seconds, and validations after steps 40, 50 and 54
    assert (found.ended, found.steps, found.run) == ("time limit", fitting, "r0001")
    assert found.seconds == first.seconds + 60.0
    assert (first.version, found.version, found.parent) == ("v0001", "v0002", None)
    assert said(shop, "a step:")[-1] == (
        "3 s a step: 18 more, 54 of 160 planned steps in all, fit into 1 more minute; the schedule ends there"
    )
    assert said(shop, "goes on") == ["run r0001 goes on after step 36 of 160, for 1 more minute from there"]
    assert rates(shop)[36:] == scheduled(36, fitting)


def test_more_time_is_enough_for_the_whole_plan_and_no_step_beyond(tmp_path, drive):
    drive()
    shop = workshop(tmp_path, max_minutes=2.0)
    shop.train()
    found = shop.resume(more_minutes=600.0)
    assert (found.ended, found.steps) == ("finished", 160)
    with pytest.raises(RunError, match="run r0001 is finished; unfinished ones: none"):
        shop.resume("r0001", more_minutes=600.0)


def test_a_stop_within_more_time_changes_nothing(tmp_path, drive):
    """Stopped and gone on with under the limit that was given last, as if it had not been stopped."""
    drive()
    straight, cut = workshop(tmp_path / "straight", max_minutes=2.0), workshop(tmp_path / "cut", max_minutes=2.0)
    straight.train()
    cut.train()
    expected = straight.resume("r0001", more_minutes=1.0)
    with pytest.raises(Interrupted, match="after step 45 of 54 of run r0001"):
        cut.resume("r0001", more_minutes=1.0, **stopped_at(45))
    assert not (cut.runs / "r0001" / "result.json").exists()
    found = cut.resume()
    assert (found.steps, found.seconds, found.version) == (expected.steps, expected.seconds, expected.version)
    assert weights(found) == weights(expected)


def test_the_description_says_every_limit_that_a_run_had(tmp_path, drive):
    drive()
    shop = workshop(tmp_path, max_minutes=2.0)
    with pytest.raises(Interrupted):
        shop.train(**stopped_at(10))
    shop.resume(more_minutes=1.0)
    assert description(shop)["limits"] == [
        {"since_step": 0, "minutes": 2.0, "seconds": 120.0},
        {"since_step": 10, "minutes": 1.0, "seconds": 32.0 + 60.0},
    ]
    assert workshop(tmp_path / "free", epochs=1).train().ended == "finished"
    assert yaml.safe_load((tmp_path / "free" / "runs" / "r0001" / "run.yaml").read_text())["limits"] == []


def test_more_time_may_be_a_limit_for_a_run_that_had_none(tmp_path, drive):
    drive()
    shop = workshop(tmp_path)
    with pytest.raises(Interrupted, match="after step 10 of 160"):
        shop.train(**stopped_at(10))
    found = shop.resume(more_minutes=1.0)
    assert (found.ended, found.steps) == ("time limit", 28)


def test_more_time_that_is_too_little_for_one_step_changes_nothing(tmp_path, drive):
    drive()
    shop = workshop(tmp_path, max_minutes=2.0)
    shop.train()
    before = description(shop)
    with pytest.raises(RunError, match=r"0.05 more minutes are too few: a step of run r0001 and a validation take 5 s"):
        shop.resume("r0001", more_minutes=0.05)
    assert description(shop) == before
    assert (shop.runs / "r0001" / "result.json").exists()
    assert shop.resume("r0001", more_minutes=0.1).steps == 37


def test_without_more_time_a_run_that_its_limit_ended_is_finished_and_the_line_says_what_to_do(tmp_path, drive):
    drive()
    shop = workshop(tmp_path, max_minutes=2.0)
    shop.train()
    with pytest.raises(RunError, match=r"is finished: its time limit ended it, and `train --resume r0001 --max-min"):
        shop.resume("r0001")
    with pytest.raises(RunError, match="no run 'latest' to resume"):
        shop.resume()


def test_the_next_training_lets_go_of_what_it_takes_to_go_on(tmp_path, drive):
    drive()
    shop = workshop(tmp_path, max_minutes=2.0)
    shop.train()
    assert (shop.runs / "r0001" / "checkpoints").is_dir()
    shop.train()
    assert not (shop.runs / "r0001" / "checkpoints").exists()
    with pytest.raises(RunError, match="run r0001's checkpoint went when the next run began"):
        shop.resume("r0001", more_minutes=1.0)
    assert shop.resume(more_minutes=1.0).run == "r0002"


def test_new_texts_of_a_run_that_its_limit_ended_are_there_when_it_goes_on(tmp_path, drive):
    drive()
    shop = workshop(tmp_path, max_minutes=2.0, proposals=2)
    first = shop.train()
    kept = shop.runs / "r0001" / "texts-0.json"
    assert kept.exists()
    before = kept.read_bytes()
    found = shop.resume(more_minutes=10.0)
    assert (found.ended, found.steps) == ("finished", 160)
    assert found.tokens > first.tokens
    assert said(shop, "goes on") == ["run r0001 goes on after step 36 of 160, for 10 more minutes from there"]
    assert before
    assert not kept.exists()
