"""`retrain`: trains, gates and promotes by itself, once; whatever cuts it off is found and finished by the next run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from retraining import PROMPTS, Shop, config_of, fixed_costs

from draftloop.config import Models
from draftloop.data_directory import DataDirectory
from draftloop.errors import Interrupted, LockedError, StoreError, TrainingFailed
from draftloop.interrupt import StopRequest
from draftloop.outlook import look, next_step
from draftloop.registry import Pointer
from draftloop.retrain import give_way
from draftloop.store.files import Files
from draftloop.verdicts import Verdict


@pytest.fixture(scope="session")
def collected(tmp_path_factory: pytest.TempPathFactory, small_models: Models) -> Shop:
    """Generations of a hundred prompts; nobody changes it."""
    shop = Shop(DataDirectory(tmp_path_factory.mktemp("collected") / "data"), config_of(small_models))
    shop.collect(PROMPTS)
    return shop


@pytest.fixture(scope="session")
def promoted(tmp_path_factory: pytest.TempPathFactory, collected: Shop) -> Shop:
    """The same after its first promotion; nobody changes it."""
    shop = collected.copy(tmp_path_factory.mktemp("promoted") / "data")
    assert shop.retrain().outcome == "promoted"
    return shop


@pytest.fixture
def shop(collected: Shop, tmp_path: Path) -> Shop:
    return collected.copy(tmp_path / "data")


def last_line(shop: Shop) -> dict[str, Any]:
    return shop.data.audit.entries()[-1]


def contents(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_failures_become_a_champion_that_is_proven_better(promoted: Shop) -> None:
    registry = promoted.data.registry
    assert registry.pointer() == Pointer("v0001", None, 1)
    verdict = promoted.data.verdicts.of("v0001")
    assert verdict is not None
    assert (verdict.outcome, verdict.champion, verdict.epoch, verdict.attempt) == ("promoted", None, 1, 1)
    assert verdict.numbers["p_value"] <= verdict.numbers["alpha"]
    assert verdict.numbers["live"]["agrees"]
    assert verdict.numbers["candidate_length"] > verdict.numbers["champion_length"]
    assert verdict.numbers["conditions"]["num_draft_tokens"] == 4


def test_one_line_of_the_audit_says_what_was_done(promoted: Shop) -> None:
    (line,) = promoted.data.audit.entries()
    assert (line["outcome"], line["steps"], line["version"]) == ("promoted", ["train", "gate"], "v0001")
    assert (line["run"], line["trained"], line["champion"], line["sequence"]) == ("r0001", True, "v0001", 1)
    assert line["failures"] > 50
    assert line["generations"] == len(PROMPTS)


def test_a_second_run_has_nothing_to_do(promoted: Shop, tmp_path: Path) -> None:
    shop = promoted.copy(tmp_path / "data")
    before = contents(shop.data.registry.root)
    found = shop.retrain()
    assert (found.outcome, found.exit_code, found.why) == ("nothing", 10, "0 unused failures of 10")
    assert contents(shop.data.registry.root) == before
    assert last_line(shop)["outcome"] == "nothing"


def test_force_trains_again_and_the_gate_still_decides(promoted: Shop, tmp_path: Path) -> None:
    shop = promoted.copy(tmp_path / "data")
    found = shop.retrain(force=True)
    assert (found.trained, found.version) == (True, "v0002")
    assert found.outcome in ("promoted", "refused")
    verdict = shop.data.verdicts.of("v0002")
    assert verdict is not None
    assert verdict.epoch in (0, 2)  # the first ended at its promotion; 0 where validation liked no later weights


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_noise_and_an_adapter_that_changes_nothing_are_refused(shop: Shop, size: float) -> None:
    version = shop.add_version(size)
    found = shop.retrain()
    assert (found.outcome, found.exit_code, found.steps) == ("refused", 11, ["gate"])
    assert (found.numbers["difference"] == 0.0) == (size == 0.0)
    assert shop.data.registry.pointer() == Pointer()
    assert shop.data.verdicts.of(version).outcome == "refused"  # type: ignore[union-attr]


def test_failures_stay_unused_until_there_is_a_verdict_and_an_inconclusive_candidate_is_gated_again(shop: Shop) -> None:
    patient = shop.config
    shop.config = config_of(patient.models, gate={"min_heldout_prompts": 90})
    found = shop.retrain()
    assert (found.outcome, found.exit_code, found.steps) == ("inconclusive", 12, ["train", "wait"])
    assert "held-out prompts of 90" in found.why
    assert look(shop.data, shop.config, 0.0).overview.failures_used == 0
    assert not (shop.data.registry.root / "epochs").exists()  # nothing was spent
    shop.config = patient
    again = shop.retrain()
    assert (again.outcome, again.steps, again.version) == ("promoted", ["gate"], "v0001")
    assert look(shop.data, shop.config, 0.0).overview.failures_new == 0


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


class _CutOffAtThePointer(Files):
    """The process ends where the pointer would move."""

    def rename(self, source: Path, target: Path) -> None:
        if target.name == "pointer.json":
            raise KeyboardInterrupt
        super().rename(source, target)


def test_a_promotion_that_was_cut_off_is_finished_without_another_look(shop: Shop) -> None:
    cut = Shop(DataDirectory(shop.data.root, files=_CutOffAtThePointer()), shop.config)
    with pytest.raises(KeyboardInterrupt):
        cut.retrain()
    assert (last_line(shop)["outcome"], last_line(shop)["steps"]) == ("interrupted", ["train", "gate"])
    assert shop.data.registry.champion() is None
    assert shop.data.verdicts.of("v0001").outcome == "promoted"  # type: ignore[union-attr]
    found = shop.retrain()
    assert (found.outcome, found.steps) == ("promoted", ["finish"])
    assert shop.data.registry.pointer() == Pointer("v0001", None, 1)
    assert shop.retrain().outcome == "nothing"


def test_a_promotion_is_not_finished_once_somebody_moved_the_pointer(promoted: Shop, tmp_path: Path) -> None:
    shop = promoted.copy(tmp_path / "data")
    shop.data.registry.rollback("by hand")
    assert shop.retrain().outcome == "nothing"
    assert shop.data.registry.champion() is None


def test_a_champion_that_moves_during_the_trial_makes_it_inconclusive(shop: Shop) -> None:
    other = shop.add_version(0.0)
    shop.data.verdicts.give_by_hand(other, None, 0, "set aside")
    timing = _promote_meanwhile(shop, other)
    found = shop.retrain(timing=timing)
    assert (found.outcome, found.exit_code) == ("inconclusive", 12)
    assert f"the champion is {other} now" in found.why
    assert shop.data.registry.champion() == other
    again = shop.retrain()
    assert (again.steps, again.version) == (["gate"], found.version)
    assert again.numbers["alpha"] < 0.3 * 6 / 9  # the second attempt's share, for it is another comparison


def test_a_refusal_rests_on_the_champion_that_it_was_compared_with_too(shop: Shop) -> None:
    other = shop.add_version(0.0)
    shop.data.verdicts.give_by_hand(other, None, 0, "set aside")
    worse = shop.add_version(1.0)
    found = shop.retrain(timing=_promote_meanwhile(shop, other))
    assert (found.outcome, found.version, found.steps) == ("inconclusive", worse, ["gate"])
    assert shop.data.verdicts.of(worse) is None


def _promote_meanwhile(shop: Shop, version: str) -> Any:
    def timing(*arguments: Any) -> Any:
        shop.data.registry.promote(version)
        return fixed_costs(*arguments)

    return timing


def test_two_at_once_are_one(shop: Shop) -> None:
    before = contents(shop.data.root)
    with shop.data.training_lock(), pytest.raises(LockedError, match="is held by process"):
        shop.retrain()
    after = contents(shop.data.root)
    assert after.pop("runs/.lock")
    assert after == before


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
    again = shop.retrain(load=_never)
    assert (again.outcome, again.steps) == ("nothing", ["nothing"])


def _never(*_arguments: Any) -> Any:
    raise AssertionError("no model was to be loaded")


# What is refused without a look at its scores


def refused_unscored(shop: Shop, version: str) -> str:
    """Why a candidate is refused, with no model loaded and nothing spent."""
    found = shop.retrain(load=_never)
    assert (found.outcome, found.exit_code, found.steps, found.version) == ("refused", 11, ["gate"], version)
    assert not (shop.data.registry.root / "epochs").exists()
    verdict = shop.data.verdicts.of(version)
    assert verdict is not None
    assert (verdict.outcome, verdict.epoch, verdict.reasons) == ("refused", 0, (found.why,))
    return found.why


@pytest.mark.parametrize("rolled_back", [False, True])
def test_a_training_that_kept_its_first_weights_is_refused_whatever_the_champion_is_now(
    shop: Shop, rolled_back: bool
) -> None:
    promote_by_hand(shop, shop.add_version(0.0))
    kept = shop.add_version(0.0, metrics={"best_step": 0})
    if rolled_back:
        shop.data.registry.rollback()
    assert "no later weights did better on validation" in refused_unscored(shop, kept)


def test_a_candidate_on_top_of_a_version_that_was_rolled_back_is_refused(shop: Shop) -> None:
    promote_by_hand(shop, shop.add_version(0.0))
    candidate = shop.add_version(0.1)
    shop.data.registry.rollback()
    assert refused_unscored(shop, candidate) == "v0001, on top of which it was trained, was rolled back since"


def test_a_damaged_candidate_is_refused(shop: Shop) -> None:
    candidate = shop.add_version(0.1)
    flip_a_bit(shop, candidate)
    assert "it is damaged: " in refused_unscored(shop, candidate)


def promote_by_hand(shop: Shop, version: str) -> None:
    """As `adapters promote` does."""
    before = shop.data.registry.pointer()
    shop.data.registry.promote(version)
    shop.data.verdicts.give_by_hand(version, before.champion, before.sequence, "by hand")


def flip_a_bit(shop: Shop, version: str) -> None:
    path = shop.data.registry.root / version / "adapters.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_version_that_was_damaged_between_its_verdict_and_its_promotion_is_refused(shop: Shop) -> None:
    version = shop.add_version(0.1)
    passed = Verdict(
        version=version, champion=None, outcome="promoted", reasons=("it is",), epoch=1, attempt=1, pointer=0, when=0.0
    )
    shop.data.verdicts.give(passed)
    flip_a_bit(shop, version)
    found = shop.retrain(load=_never)
    assert (found.outcome, found.steps) == ("refused", ["finish"])
    assert "was damaged since" in found.why
    assert shop.data.registry.pointer() == Pointer()
    assert look(shop.data, shop.config, 0.0).pending is None


def test_a_damaged_champion_is_a_fault_that_says_how_to_get_out_of_it(shop: Shop) -> None:
    promote_by_hand(shop, shop.add_version(0.0))
    flip_a_bit(shop, "v0001")
    with pytest.raises(StoreError, match=r"the champion is not whole: .*`adapters rollback` goes back") as caught:
        shop.retrain(load=_never)
    assert caught.value.exit_code == 1
    assert last_line(shop)["outcome"] == "error"


def test_a_worse_champion_is_rolled_back_by_itself_when_the_one_before_is_better_there(shop: Shop) -> None:
    bad = shop.add_version(0.3)
    shop.data.registry.promote(bad)
    shop.data.verdicts.give_by_hand(bad, None, 0, "by hand")
    shop.collect(PROMPTS[:60], seed=1)
    facts = look(shop.data, shop.config, 0.0)
    assert [(alarm.kind, alarm.source) for alarm in facts.alarms] == [("fall", "default")]
    assert next_step(facts, shop.config).action == "check"
    found = shop.retrain()
    assert (found.outcome, found.exit_code, found.steps) == ("rolled back", 0, ["check"])
    assert shop.data.registry.pointer() == Pointer(None, bad, 2)
    assert not look(shop.data, shop.config, 0.0).alarms
    assert "acceptance of default fell" in found.why


def test_a_damaged_previous_version_is_no_way_back_and_stops_nothing_else(shop: Shop) -> None:
    promote_by_hand(shop, shop.add_version(0.0))
    promote_by_hand(shop, shop.add_version(0.3))
    flip_a_bit(shop, "v0001")
    nervous = {"false_alarm_rate": 0.99, "horizon": 20, "tolerance": 0.0, "reference": 10, "min_failure_cases": 1000}
    shop.config = config_of(shop.config.models, drift=nervous, training={"min_failure_cases": 1000})
    shop.collect(PROMPTS[:60], seed=1)
    lines: list[str] = []
    found = shop.retrain(load=_never, say=lines.append)
    assert (found.outcome, found.steps, found.checked) == ("nothing", ["check", "nothing"], 2)
    assert any("v0002 stays: there is nothing to go back to" in line for line in lines)


def test_an_alarm_under_a_champion_that_is_no_worse_rolls_nothing_back(promoted: Shop, tmp_path: Path) -> None:
    """A watch that cries at nothing: the champion is checked once, and what was collected is trained on."""
    shop = promoted.copy(tmp_path / "data")
    nervous = {"false_alarm_rate": 0.99, "horizon": 20, "tolerance": 0.0, "min_failure_cases": 1}
    shop.config = config_of(shop.config.models, drift=nervous, training={"min_failure_cases": 1000, "epochs": 1})
    shop.collect(PROMPTS[:80], seed=1)
    assert look(shop.data, shop.config, 0.0).alarms
    found = shop.retrain()
    assert found.steps == ["check", "train", "gate"]
    assert (found.checked, last_line(shop)["checked"]) == (1, 1)
    assert shop.data.registry.pointer().sequence == (2 if found.outcome == "promoted" else 1)  # not rolled back
    assert not look(shop.data, shop.config, 0.0).alarms


def test_old_weights_are_deleted_and_what_they_learned_from_is_not_forgotten(promoted: Shop, tmp_path: Path) -> None:
    shop = promoted.copy(tmp_path / "data")
    shop.config = config_of(shop.config.models, retrain={"keep_versions": 1})
    for seed in (1, 2):
        shop.add_version(0.5, seed)
        shop.retrain()
    assert shop.data.registry.versions() == ["v0001", "v0003"]
    assert shop.data.registry.pruned() == ["v0002"]
    assert look(shop.data, shop.config, 0.0).overview.failures_new == 0


def test_looking_changes_nothing(shop: Shop) -> None:
    before = contents(shop.data.root)
    assert next_step(look(shop.data, shop.config, 0.0), shop.config).action == "train"
    assert contents(shop.data.root) == before


def test_giving_way_never_raises_the_priority() -> None:
    import os

    before = os.nice(0)
    give_way(0)
    assert os.nice(0) == before
