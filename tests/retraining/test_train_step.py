"""The training of an unattended run: what was cut off is gone on with or given up, and a budget is kept to."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clocks import Ticking
from shop import Shop, config_of, last_line, never
from stops import StopAfter

from draftloop.errors import Interrupted, PairError, StoreError, TrainingFailed
from draftloop.retraining.facts import read_facts
from draftloop.retraining.plan import next_action
from draftloop.runtime.signals import StopRequest
from draftloop.training import loop as loop_module


def test_a_training_that_was_stopped_is_gone_on_with(shop: Shop) -> None:
    stop = StopRequest()
    with pytest.raises(Interrupted):
        shop.retrain(stop=StopAfter(20))
    assert (last_line(shop)["outcome"], last_line(shop)["trained"]) == ("interrupted", False)
    lines: list[str] = []
    found = shop.retrain(say=lines.append, stop=stop)
    assert (found.steps, found.run, found.outcome) == (["resume", "gate"], "r0001", "promoted")
    assert lines[0] == "resume: run r0001 was cut off and left a checkpoint"


def test_a_run_goes_on_whatever_the_draft_may_propose_by_now(shop: Shop) -> None:
    with pytest.raises(Interrupted):
        shop.retrain(stop=StopAfter(0))
    shop.config = config_of(shop.config.models.model_copy(update={"draft_vocabulary": "all"}))
    found = shop.retrain()
    assert (found.steps, found.run) == (["resume", "gate"], "r0001")


@pytest.mark.slow
def test_a_run_that_left_no_checkpoint_is_given_up_and_it_starts_clean(shop: Shop) -> None:
    run = shop.data.runs / "r0001"
    with pytest.raises(Interrupted):
        shop.retrain(stop=StopAfter(0))
    (run / "checkpoints" / "latest.json").unlink()
    lines: list[str] = []
    found = shop.retrain(say=lines.append)
    assert (found.steps, found.run, found.outcome) == (["train", "gate"], "r0002", "promoted")
    assert "run r0001 was cut off and cannot be resumed: starting clean" in lines
    assert (run / "result.json").is_file()


def damage_the_checkpoint(run: Path) -> None:
    tensors = next((run / "checkpoints").glob("c*/tensors.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-1])


def damage_the_material(run: Path) -> None:
    (run / "material.json").write_bytes(b"{}")


def damage_the_adapter_s_shape(run: Path) -> None:
    text = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(text.replace("rank: 8\n", "rank: -8\n", 1))


@pytest.mark.parametrize("ruin", [damage_the_checkpoint, damage_the_material, damage_the_adapter_s_shape])
def test_a_run_that_cannot_be_gone_on_with_is_given_up_and_it_starts_clean(
    shop: Shop, ruin: Callable[[Path], None]
) -> None:
    shop.config = config_of(shop.config.models, training={"epochs": 1})
    with pytest.raises(Interrupted):
        shop.retrain(stop=StopAfter(0))
    ruin(shop.data.runs / "r0001")
    found = shop.retrain()
    assert (found.steps, found.run) == (["resume", "train", "gate"], "r0002")


def test_a_run_that_was_killed_again_and_again_at_one_step_fails_and_is_not_begun_anew(shop: Shop) -> None:
    with pytest.raises(Interrupted):
        shop.retrain(stop=StopAfter(0))
    run = shop.data.runs / "r0001"
    for _ in range(3):
        with pytest.raises(_Killed):
            shop.retrain(load=_dies)
    assert not (run / "result.json").exists()
    with pytest.raises(TrainingFailed, match="resumed 3 times and came no further"):
        shop.retrain(load=_dies)
    assert (run / "result.json").exists()
    found = shop.retrain(load=never)
    assert (found.outcome, found.steps) == ("nothing", ["nothing"])


class _Killed(BaseException):
    """Nobody catches a kill."""


def _dies(*_arguments: Any) -> Any:
    raise _Killed


def test_stops_on_purpose_are_not_held_against_a_run(shop: Shop) -> None:
    for _ in range(6):
        with pytest.raises(Interrupted):
            shop.retrain(stop=StopAfter(0))
    assert read_facts(shop.data, shop.config, 0.0).run == "r0001"


def test_a_model_that_is_away_for_a_while_costs_no_run(shop: Shop) -> None:
    with pytest.raises(Interrupted):
        shop.retrain(stop=StopAfter(0))
    draft = Path(shop.config.models.draft)
    own = shop.config.models.model_copy(update={"draft": str(shop.data.root / "draft")})
    shutil.copytree(draft, own.draft)
    shop.config = config_of(own)
    with pytest.raises(Interrupted):
        shop.retrain(stop=StopAfter(0), force=True)
    Path(own.draft).rename(shop.data.root / "away")
    for _ in range(4):
        with pytest.raises(PairError):
            shop.retrain()
    Path(shop.data.root / "away").rename(own.draft)
    assert read_facts(shop.data, shop.config, 0.0).run == "r0002"
    assert read_facts(shop.data, config_of(own.model_copy(update={"draft": str(draft)})), 0.0).run == "r0001"


def test_settings_that_were_mended_while_a_run_was_cut_off_are_tried_at_once(shop: Shop) -> None:
    good = shop.config
    shop.config = config_of(good.models, training={"epochs": 1}, retrain={"max_memory_gb": 1000.0})
    with pytest.raises(Interrupted):
        shop.retrain(stop=StopAfter(0))
    (shop.data.runs / "r0001" / "resumptions.json").write_bytes(b'{"step": 0, "times": 3}')
    shop.config = good
    with pytest.raises(TrainingFailed, match="came no further"):
        shop.retrain()
    facts = read_facts(shop.data, good, time.time())
    assert facts.failed is not None
    assert facts.failed.recipe != facts.recipe
    assert next_action(facts, good).action == "train"


@pytest.mark.slow
def test_a_training_counts_as_one_even_where_the_gate_was_interrupted(shop: Shop) -> None:
    def interrupt(*_arguments: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shop.retrain(timing=interrupt)
    line = last_line(shop)
    assert (line["outcome"], line["steps"], line["trained"]) == ("interrupted", ["train", "gate"], True)


def test_a_version_that_is_damaged_as_soon_as_it_is_made_ends_the_run(shop: Shop) -> None:
    def damage(line: str) -> None:
        if line.startswith("trained v0001"):
            (shop.data.registry.root / "v0001" / "manifest.json").write_bytes(b"{}")

    shop.config = config_of(shop.config.models, training={"epochs": 1})
    with pytest.raises(StoreError, match="v0001 was trained and is no candidate"):
        shop.retrain(say=damage)
    assert shop.data.registry.versions() == ["v0001"]


def test_a_run_of_other_models_is_not_gone_on_with(shop: Shop) -> None:
    with pytest.raises(Interrupted):
        shop.retrain(stop=StopAfter(0))
    assert read_facts(shop.data, shop.config, 0.0).run == "r0001"
    models = shop.config.models.model_copy(update={"draft": shop.config.models.target})
    assert read_facts(shop.data, config_of(models), 0.0).run is None


def test_a_training_that_outgrows_its_memory_fails_and_is_not_tried_again_on_the_same_failures(shop: Shop) -> None:
    shop.config = config_of(shop.config.models, retrain={"max_memory_gb": 1e-5})
    with pytest.raises(TrainingFailed, match=r"of the 1e-05 GB allowed.*max_memory_gb"):
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


def test_the_time_budget_fits_the_schedule_and_what_is_said_of_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "WorkingTime", Ticking)
    shop.config = config_of(shop.config.models, training={"epochs": 100}, retrain={"max_minutes": 1.0})
    calls: list[tuple[int, int]] = []
    found = shop.retrain(on_step=lambda *at: calls.append(at))
    log = (shop.data.runs / str(found.run) / "train.log").read_text()
    planned = int(log.partition(" planned steps fit into 1 minute; the schedule ends there")[0].rpartition(" ")[2])
    assert calls[0] == (0, planned)
    assert calls[-1][0] == calls[-1][1] < planned
