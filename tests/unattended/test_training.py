"""The training of an unattended run: what was cut off is gone on with or given up, and a budget is kept to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from retraining import Shop, config_of, last_line, never

from draftloop.errors import Interrupted, TrainingFailed
from draftloop.interrupt import StopRequest
from draftloop.outlook import look


def test_a_training_that_was_stopped_is_gone_on_with(shop: Shop) -> None:
    stop = StopRequest()
    with pytest.raises(Interrupted):
        shop.retrain(stop=_StopAfter(20))
    assert (last_line(shop)["outcome"], last_line(shop)["trained"]) == ("interrupted", False)
    lines: list[str] = []
    found = shop.retrain(say=lines.append, stop=stop)
    assert (found.steps, found.run, found.outcome) == (["resume", "gate"], "r0001", "promoted")
    assert lines[0] == "resume: run r0001 was cut off and left a checkpoint"


class _StopAfter(StopRequest):
    """Asks to stop after having been looked at so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._left = looks

    def __bool__(self) -> bool:
        self._left -= 1
        return self._left < 0


def test_a_run_that_left_no_checkpoint_is_given_up_and_it_starts_clean(shop: Shop) -> None:
    run = shop.data.runs / "r0001"
    with pytest.raises(Interrupted):
        shop.retrain(stop=_StopAfter(0))
    (run / "checkpoints" / "latest.json").unlink()
    lines: list[str] = []
    found = shop.retrain(say=lines.append)
    assert (found.steps, found.run, found.outcome) == (["train", "gate"], "r0002", "promoted")
    assert "run r0001 was cut off and cannot be gone on with: starting clean" in lines
    assert (run / "result.json").is_file()


def damage_the_checkpoint(run: Path) -> None:
    tensors = next((run / "checkpoints").glob("c*/tensors.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-1])


def come_no_further(run: Path) -> None:
    """As if it had been gone on with and killed before its next checkpoint, again and again."""
    (run / "resumptions.json").write_bytes(b'{"step": 0, "times": 3}')


@pytest.mark.parametrize("ruin", [damage_the_checkpoint, come_no_further])
def test_a_run_that_cannot_be_gone_on_with_is_given_up_and_it_starts_clean(
    shop: Shop, ruin: Callable[[Path], None]
) -> None:
    with pytest.raises(Interrupted):
        shop.retrain(stop=_StopAfter(0))
    ruin(shop.data.runs / "r0001")
    found = shop.retrain()
    assert (found.steps, found.run, found.outcome) == (["resume", "train", "gate"], "r0002", "promoted")


def test_a_run_of_other_models_is_not_gone_on_with(shop: Shop) -> None:
    with pytest.raises(Interrupted):
        shop.retrain(stop=_StopAfter(0))
    assert look(shop.data, shop.config, 0.0).run == "r0001"
    models = shop.config.models.model_copy(update={"draft": shop.config.models.target})
    assert look(shop.data, config_of(models), 0.0).run is None


def test_a_training_that_outgrows_its_memory_fails_and_is_not_tried_again_on_the_same_failures(shop: Shop) -> None:
    shop.config = config_of(shop.config.models, retrain={"max_memory_gb": 1e-5})
    with pytest.raises(TrainingFailed, match="max_memory_gb is 1e-05"):
        shop.retrain()
    assert (last_line(shop)["outcome"], last_line(shop)["trained"]) == ("failed", True)
    found = shop.retrain()
    assert (found.outcome, found.steps) == ("nothing", ["nothing"])  # nor is the run gone on with
    assert (
        "the last training came to nothing; it is tried again with 10 more failures, with other settings" in found.why
    )
    shop.config = config_of(shop.config.models, training={"epochs": 1})
    again = shop.retrain()
    assert (again.steps[0], again.run) == ("train", "r0002")


def test_a_time_budget_that_leaves_no_step_fails_and_makes_no_version(shop: Shop) -> None:
    shop.config = config_of(shop.config.models, retrain={"max_minutes": 1e-6})
    with pytest.raises(TrainingFailed, match="not one step was made"):
        shop.retrain()
    assert shop.data.registry.versions() == []
    assert shop.retrain().outcome == "nothing"


def test_failures_of_which_none_can_be_used_are_nothing_to_do_and_the_models_are_loaded_once(shop: Shop) -> None:
    shop.config = config_of(shop.config.models, data={"max_prompt_length": 1})
    found = shop.retrain()
    assert (found.outcome, found.exit_code, found.steps, found.trained) == ("nothing", 10, ["train"], True)
    assert "is a usable failure" in found.why
    again = shop.retrain(load=never)
    assert (again.outcome, again.steps) == ("nothing", ["nothing"])
