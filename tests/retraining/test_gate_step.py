"""What becomes of a candidate and of a champion under an alarm, with whatever happens in between."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import NO_SYNC, make_record
from shop import LATER, PROMPTS, Shop, config_of, fixed_costs, flip_a_bit, last_line, never, promote_by_hand

from draftloop.collection.collect import CollectReport
from draftloop.config import Models
from draftloop.data.log import FailureLog
from draftloop.data.record_lines import to_line
from draftloop.data.records import Record
from draftloop.data_directory import DataDirectory
from draftloop.errors import AdapterDamaged
from draftloop.evaluation.gate_evaluation import score_outputs
from draftloop.evaluation.units_and_levels import alpha_of_attempt
from draftloop.models.pair import Pair, load_pair
from draftloop.registry.registry import Pointer
from draftloop.registry.verdicts import Verdict
from draftloop.retraining.facts import read_facts
from draftloop.retraining.gate_step import heldout_sample, watch_from_now
from draftloop.retraining.plan import next_action
from draftloop.store.files import Files

PASSED = Verdict(
    version="v0001", champion=None, outcome="promoted", reasons=("it is",), epoch=1, attempt=1, pointer=0, when=0.0
)


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_noise_and_an_adapter_that_changes_nothing_are_refused(shop: Shop, size: float) -> None:
    version = shop.add_version(size)
    found = shop.retrain()
    assert (found.outcome, found.exit_code, found.steps) == ("refused", 11, ["gate"])
    assert (found.numbers["difference"] == 0.0) == (size == 0.0)
    assert shop.data.registry.pointer() == Pointer()
    assert shop.data.verdicts.of(version).outcome == "refused"  # type: ignore[union-attr]


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


def test_a_promotion_that_was_cut_off_is_found_behind_newer_versions_and_damaged_verdicts(shop: Shop) -> None:
    one, two = shop.add_version(0.1), shop.add_version(0.2)
    shop.data.verdicts.give(replace(PASSED, version=one))
    shop.data.verdicts.give(replace(PASSED, version=two))
    (shop.data.registry.root / "verdicts" / f"{two}.json").write_bytes(b"?")
    assert read_facts(shop.data, shop.config, 0.0).pending == one
    assert shop.retrain(load=never).champion == one


def test_a_promotion_is_not_finished_once_somebody_moved_the_pointer(promoted: Shop, tmp_path: Path) -> None:
    shop = promoted.copy(tmp_path / "data")
    shop.data.registry.rollback("by hand")
    assert shop.retrain().outcome == "nothing"
    assert shop.data.registry.champion() is None


@pytest.mark.slow
def test_scoring_and_timing_say_how_far_they_are(shop: Shop) -> None:
    seen: list[tuple[str, int, int]] = []
    shop.retrain(on_work=lambda *at: seen.append(at), timing=None)
    assert list(dict.fromkeys(what for what, _, _ in seen))[:3] == ["getting ready to train", "scoring", "timing steps"]
    for what in ("scoring", "timing steps"):
        done, of = zip(*((done, of) for one, done, of in seen if one == what), strict=True)
        assert done == tuple(range(of[0] + 1))
        assert len(set(of)) == 1


def test_a_champion_that_moves_while_a_candidate_is_scored_makes_it_inconclusive(shop: Shop) -> None:
    other = shop.add_version(0.0)
    shop.data.verdicts.give_by_hand(other, None, 0, "set aside")
    timing = _promote_meanwhile(shop, other)
    found = shop.retrain(timing=timing)
    assert (found.outcome, found.exit_code) == ("inconclusive", 12)
    assert f"the champion is {other} now" in found.why
    assert shop.data.registry.champion() == other
    again = shop.retrain()
    assert (again.steps, again.version) == (["gate"], found.version)
    assert again.numbers["alpha"] == pytest.approx(alpha_of_attempt(2, 0.3))  # for it is another comparison


def test_a_refusal_rests_on_the_champion_that_it_was_compared_with_too(shop: Shop) -> None:
    other = shop.add_version(0.0)
    shop.data.verdicts.give_by_hand(other, None, 0, "set aside")
    worse = shop.add_version(1.0)
    found = shop.retrain(timing=_promote_meanwhile(shop, other))
    assert (found.outcome, found.version, found.steps) == ("inconclusive", worse, ["gate"])
    assert shop.data.verdicts.of(worse) is None


def test_a_promotion_is_not_finished_if_the_champion_moves_meanwhile_and_is_gated_again(shop: Shop) -> None:
    other, passed = shop.add_version(0.0), shop.add_version(0.1)
    shop.data.verdicts.give_by_hand(other, None, 0, "set aside")
    shop.data.verdicts.give(replace(PASSED, version=passed))
    found = shop.retrain(load=never, say=_promote_at(shop, "finish: ", other))
    assert (found.outcome, found.exit_code, found.steps) == ("inconclusive", 12, ["finish"])
    assert f"the champion is {other} now" in found.why
    assert (last_line(shop)["outcome"], last_line(shop)["champion"]) == ("inconclusive", other)
    assert next_action(read_facts(shop.data, shop.config, 0.0), shop.config).subject == passed


def test_a_champion_that_moves_during_a_look_is_not_rolled_back(shop: Shop) -> None:
    other, bad = shop.add_version(0.0), bad_champion(shop)
    shop.collect(LATER, seed=1)
    found = shop.retrain(say=_promote_at(shop, "check: ", other))
    assert (found.outcome, found.exit_code, found.steps) == ("inconclusive", 12, ["check"])
    assert (last_line(shop)["outcome"], last_line(shop)["version"]) == ("inconclusive", bad)
    assert shop.data.registry.pointer() == Pointer(other, bad, 2)


def _promote_at(shop: Shop, begin: str, version: str) -> Callable[[str], None]:
    """Promotes a version when `retrain` has read its facts and says what it does."""

    def say(line: str) -> None:
        if line.startswith(begin):
            shop.data.registry.promote(version)

    return say


def _promote_meanwhile(shop: Shop, version: str) -> Any:
    def timing(*arguments: Any) -> Any:
        shop.data.registry.promote(version)
        return fixed_costs(*arguments)

    return timing


# What is refused without a look at its scores


def refused_unscored(shop: Shop, version: str) -> tuple[str, str]:
    """The verdict on a candidate that is refused with no model loaded and nothing spent, and why."""
    found = shop.retrain(load=never)
    assert (found.outcome, found.exit_code, found.steps, found.version) == ("refused", 11, ["gate"], version)
    assert not (shop.data.registry.root / "epochs").exists()
    verdict = shop.data.verdicts.of(version)
    assert verdict is not None
    assert (verdict.epoch, verdict.reasons) == (0, (found.why,))
    return verdict.outcome, found.why


@pytest.mark.parametrize("rolled_back", [False, True])
def test_a_training_that_kept_its_first_weights_is_refused_whatever_the_champion_is_now(
    shop: Shop, rolled_back: bool
) -> None:
    promote_by_hand(shop, shop.add_version(0.0))
    kept = shop.add_version(0.0, metrics={"best_step": 0})
    if rolled_back:
        shop.data.registry.rollback()
    outcome, why = refused_unscored(shop, kept)
    if rolled_back:
        assert (outcome, why) == ("discarded", "v0001, on top of which it was trained, was rolled back since")
    else:
        assert (outcome, why) == ("refused", "no later weights did better on validation than those it started from")


def test_a_candidate_on_top_of_a_version_that_was_rolled_back_is_refused(shop: Shop) -> None:
    promote_by_hand(shop, shop.add_version(0.0))
    candidate = shop.add_version(0.1)
    shop.data.registry.rollback()
    expected = ("discarded", "v0001, on top of which it was trained, was rolled back since")
    assert refused_unscored(shop, candidate) == expected


def test_what_was_rolled_back_is_refused_even_where_its_verdict_is_lost(shop: Shop) -> None:
    one, two, three = (shop.add_version(size) for size in (0.0, 0.1, 0.2))
    shop.data.registry.promote(one)
    shop.data.registry.promote(three)
    shop.data.registry.rollback()
    shop.data.registry.promote(two)
    assert refused_unscored(shop, three) == ("refused", "it was rolled back before")


def test_an_epoch_keeps_its_alpha_whatever_the_settings_are_later(shop: Shop) -> None:
    shop.add_version(1.0)
    assert shop.retrain().numbers["alpha"] == pytest.approx(alpha_of_attempt(1, 0.3))
    version = shop.add_version(1.0, seed=1)
    shop.config = config_of(shop.config.models, gate={"alpha": 0.01})
    assert shop.retrain().numbers["alpha"] == pytest.approx(alpha_of_attempt(2, 0.3))
    verdict = shop.data.verdicts.of(version)
    assert verdict is not None
    assert verdict.numbers["epoch"] == {"alpha": 0.3, "max_attempts": 5, "min_heldout_prompts": 12}


def test_near_duplicates_are_one_prompt_of_a_sample(tmp_path: Path) -> None:
    log = FailureLog(tmp_path / "failures.jsonl", NO_SYNC)
    prompts = [f"{start} describe a {animal}" for animal in ("lion", "shark") for start in ("", "Please", "Could you")]
    records = log.extend(make_record(prompt=prompt) for prompt in prompts)
    group_of = log.groups().group_of
    chosen = heldout_sample(records, 2, 1, group_of)
    assert {group_of(record) for record in records if record.id in chosen} == {group_of(r) for r in records}


def spoil(shop: Shop, count: int) -> set[str]:
    """Make so many held-out records ones that a wider draft left, or that have no output; returns all the others."""
    pair = load_pair(shop.config.models)
    held_out = list(shop.data.log.records({"heldout"}))
    assert len(held_out) > count > 1
    empty: dict[str, Any] = {"target_output": (), "draft_output": (), "rounds": (), "log_p": (), "log_q": ()}
    foreign = {"prompt_tokens": (1, pair.width)}
    spoilt = {
        record.id: replace(record, **({**empty, "disagreements": ()} if i % 2 else foreign))
        for i, record in enumerate(held_out[:count])
    }
    lines = [to_line(spoilt.get(record.id, record)) for record in shop.data.log.records()]
    shop.data.log.path.write_bytes(b"".join(lines))
    return {record.id for record in held_out[count:]}


def test_the_gate_leaves_out_what_the_pair_cannot_be_evaluated_on(shop: Shop) -> None:
    others = spoil(shop, 2)
    shop.add_version(1.0)
    assert shop.retrain().outcome == "refused"
    epoch = shop.data.verdicts.epoch(load_pair(shop.config.models).identity)
    assert epoch is not None
    assert set(epoch.record_ids) == others


def test_a_candidate_waits_where_the_pair_can_be_evaluated_on_too_little_of_what_was_held_out(shop: Shop) -> None:
    held_out = len(list(shop.data.log.records({"heldout"})))
    others = spoil(shop, held_out - 5)
    version = shop.add_version(1.0)
    shop.config = config_of(shop.config.models, gate={"min_heldout_prompts": 6})
    found = shop.retrain()
    assert (found.outcome, found.version, found.steps) == ("inconclusive", version, ["gate"])
    assert f"can use {len(others)} of {version}'s held-out prompts, and the gate wants 6" in found.why
    assert shop.data.verdicts.epoch(load_pair(shop.config.models).identity) is None  # nothing was spent


def test_a_sample_has_as_many_prompt_groups_as_it_can() -> None:
    records = [make_record(id=f"{i:032x}", prompt=f"prompt {'ab'[i % 10 == 0]}{'x' * (i // 10)}") for i in range(60)]
    groups = {record.group for record in records}
    chosen = heldout_sample(records, len(groups), seed=1)
    assert {record.group for record in records if record.id in chosen} == groups
    assert len(set(heldout_sample(records, 30, seed=1))) == 30
    assert heldout_sample(records, 30, seed=1) == heldout_sample(records, 30, seed=1) != heldout_sample(records, 30, 2)
    assert len(heldout_sample(records, 100, seed=1)) == 60


def test_a_damaged_candidate_is_refused(shop: Shop) -> None:
    candidate = shop.add_version(0.1)
    flip_a_bit(shop, candidate)
    outcome, why = refused_unscored(shop, candidate)
    assert outcome == "discarded"
    assert why.startswith("it is damaged: ")
    assert read_facts(shop.data, shop.config, 0.0).overview.failures_used == 0


def test_a_version_that_was_damaged_between_its_verdict_and_its_promotion_is_refused(shop: Shop) -> None:
    version = shop.add_version(0.1)
    shop.data.verdicts.give(replace(PASSED, version=version))
    flip_a_bit(shop, version)
    found = shop.retrain(load=never)
    assert (found.outcome, found.steps) == ("refused", ["finish"])
    assert "was damaged since" in found.why
    assert shop.data.registry.pointer() == Pointer()
    assert read_facts(shop.data, shop.config, 0.0).pending is None


def test_a_damaged_champion_is_a_fault_that_says_how_to_get_out_of_it(shop: Shop) -> None:
    promote_by_hand(shop, shop.add_version(0.0))
    flip_a_bit(shop, "v0001")
    with pytest.raises(AdapterDamaged, match=r"the champion is not whole: .*`adapters rollback` goes back") as caught:
        shop.retrain(load=never)
    assert caught.value.exit_code == 1
    assert last_line(shop)["outcome"] == "error"


def bad_champion(shop: Shop) -> str:
    """A draft that is far worse than the one before it, promoted by hand."""
    bad = shop.add_version(0.3)
    promote_by_hand(shop, bad)
    return bad


def test_a_worse_champion_is_rolled_back_by_itself_after_twelve_new_held_out_prompts(shop: Shop) -> None:
    bad = bad_champion(shop)
    shop.collect(LATER, seed=1)
    facts = read_facts(shop.data, shop.config, 0.0)
    assert {one.unit for one in facts.looks if one.kind == "look"} == {"default"}
    assert next_action(facts, shop.config).action == "check"
    found = shop.retrain()
    assert (found.outcome, found.exit_code, found.steps) == ("rolled back", 0, ["check"])
    assert shop.data.registry.pointer() == Pointer(None, bad, 2)
    assert "more than 2% worse than the previous draft" in found.why
    assert found.numbers["length"] < found.numbers["previous_length"]
    after = read_facts(shop.data, shop.config, 0.0)
    assert (after.alarms, after.looks) == ([], ())


def test_only_held_out_prompts_that_are_new_are_looked_at(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one record of training, of validation, or of a prompt that was there at the promotion."""
    before = {record.group for record in shop.data.log.records()}
    bad_champion(shop)
    shop.collect(PROMPTS[:60], seed=1)
    assert read_facts(shop.data, shop.config, 0.0).looks == ()
    shop.collect(LATER, seed=1)
    scored: list[Record] = []

    def scored_texts(pair: Any, records: list[Record], *args: Any, **options: Any) -> Any:
        scored.extend(records)
        return score_outputs(pair, records, *args, **options)

    monkeypatch.setattr("draftloop.evaluation.gate_evaluation.score_outputs", scored_texts)
    assert shop.retrain().outcome == "rolled back"
    assert {record.split for record in scored} == {"heldout"}
    assert not {record.group for record in scored} & before
    assert len({record.group for record in scored}) >= 12


def test_a_draft_that_was_rolled_back_is_not_brought_back_by_a_look(shop: Shop) -> None:
    """What a person took out of use stays out, however much better it looks."""
    good, bad = shop.add_version(0.0), shop.add_version(0.3)
    promote_by_hand(shop, bad)
    promote_by_hand(shop, good)
    watch_from_now(shop.data, shop.config, shop.data.registry.rollback())  # bad again, with good behind it
    shop.collect(LATER, seed=1)
    assert read_facts(shop.data, shop.config, 0.0).looks == ()
    shop.config = config_of(shop.config.models, training={"min_failure_cases": 10_000})
    assert shop.retrain(load=never).steps == ["nothing"]


def test_a_look_that_was_cut_off_is_made_again_on_the_same_records(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_champion(shop)
    shop.collect(LATER[:80], seed=1)

    def cut_off(*_args: Any, **_options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("draftloop.evaluation.gate_evaluation.score_outputs", cut_off)
        with pytest.raises(KeyboardInterrupt):
            shop.retrain()
    (begun, *_) = read_facts(shop.data, shop.config, 0.0).looks
    assert begun.p_value is None
    shop.collect(LATER[80:], seed=1)
    assert read_facts(shop.data, shop.config, 0.0).looks == (begun,)
    assert shop.retrain().outcome == "rolled back"


def test_what_a_look_was_to_be_made_on_may_be_deleted(shop: Shop) -> None:
    bad_champion(shop)
    shop.collect(LATER, seed=1)
    (look_, *_) = read_facts(shop.data, shop.config, 0.0).looks
    watching = shop.data.promotion_watch.of(shop.data.registry.pointer())
    assert watching is not None
    shop.data.promotion_watch.note_begun(watching, look_)
    shop.data.log.path.unlink()
    lines: list[str] = []
    shop.retrain(say=lines.append)
    assert any("none of the generations that the look is about is left" in line for line in lines)
    assert read_facts(shop.data, shop.config, 0.0).looks == ()


def test_a_champion_of_an_older_version_is_watched_from_the_last_verdict_on(promoted: Shop, tmp_path: Path) -> None:
    shop = promoted.copy(tmp_path / "data")
    shutil.rmtree(shop.data.registry.root / "watching")
    shop.collect(LATER, seed=1)
    shop.config = config_of(shop.config.models, training={"min_failure_cases": 10_000})
    assert (
        next_action(read_facts(shop.data, shop.config, 0.0), shop.config).action == "check"
    )  # and `status` says so before
    found = shop.retrain()
    assert found.steps[0] == "check"  # what came after the verdict is new
    assert found.outcome == "nothing"


def test_what_is_logged_while_a_candidate_is_scored_is_left_to_the_looks(shop: Shop) -> None:
    def load(models: Models, adapter: Path | None, name: str | None) -> Pair:
        if not arrived:
            arrived.append(shop.collect(LATER[:50]))
        return load_pair(models, adapter, name, names=shop.data.names)

    arrived: list[CollectReport] = []
    shop.add_version(1.0)
    before = {record.id for record in shop.data.log.records({"heldout"})}
    found = shop.retrain(load=load)
    assert found.steps == ["gate"]
    assert {record.id for record in shop.data.log.records({"heldout"})} > before
    pair = load_pair(shop.config.models, names=shop.data.names)
    epoch = shop.data.verdicts.epoch(pair.identity)
    assert epoch is not None
    assert set(epoch.record_ids) == before


class _CutOffAtTheWatch(Files):
    """The process ends between the pointer's move and the note of what is new from then on."""

    def rename(self, source: Path, target: Path) -> None:
        if target.parent.name == "watching":
            raise KeyboardInterrupt
        super().rename(source, target)


@pytest.mark.slow
def test_what_the_gate_saw_is_not_new_where_the_promotion_was_cut_off_before_it_was_watched(shop: Shop) -> None:
    shop.add_version(0.0, metrics={"best_step": 0})
    assert shop.retrain().outcome == "refused"  # an earlier verdict, unscored
    shop.collect(LATER)
    cut = Shop(DataDirectory(shop.data.root, files=_CutOffAtTheWatch()), shop.config)
    with pytest.raises(KeyboardInterrupt):
        cut.retrain()
    pointer = shop.data.registry.pointer()
    assert (pointer.champion, shop.data.promotion_watch.of(pointer)) == ("v0002", None)
    assert shop.retrain().steps == ["nothing"]
    watching = shop.data.promotion_watch.of(pointer)
    assert watching is not None
    assert watching.made == ()


def test_a_damaged_watch_is_shown_and_stops_no_status(shop: Shop) -> None:
    bad_champion(shop)
    (shop.data.registry.root / "watching" / "1.json").write_bytes(b"?")
    facts = read_facts(shop.data, shop.config, 0.0)
    assert facts.looks == ()
    assert any("1.json is damaged" in line for line in facts.overview.damage)


def test_a_damaged_previous_version_is_no_way_back_and_stops_nothing_else(shop: Shop) -> None:
    promote_by_hand(shop, shop.add_version(0.0))
    promote_by_hand(shop, shop.add_version(0.3))
    flip_a_bit(shop, "v0001")
    shop.config = config_of(shop.config.models, training={"min_failure_cases": 10_000})
    shop.collect(LATER, seed=1)
    lines: list[str] = []
    found = shop.retrain(load=never, say=lines.append)
    assert (found.outcome, found.steps, found.checked) == ("nothing", ["check", "nothing"], 2)
    assert any("v0002 stays: there is nothing to go back to" in line for line in lines)


def test_an_alarm_under_a_champion_that_is_no_worse_rolls_nothing_back(promoted: Shop, tmp_path: Path) -> None:
    """A watch that cries at nothing: the champion is checked once, and what was collected is trained on."""
    shop = promoted.copy(tmp_path / "data")
    nervous = {"false_alarm_rate": 0.99, "horizon": 20, "tolerance": 0.0, "min_failure_cases": 1, "reference": 10}
    shop.config = config_of(shop.config.models, drift=nervous, training={"min_failure_cases": 1000, "epochs": 1})
    shop.collect(LATER, seed=1)
    facts = read_facts(shop.data, shop.config, 0.0)
    assert facts.alarms
    assert "check" in {one.kind for one in facts.looks}
    found = shop.retrain()
    assert found.steps == ["check", "train", "gate"]
    assert (found.checked, last_line(shop)["checked"]) == (1, 1)
    assert shop.data.registry.pointer().sequence == (2 if found.outcome == "promoted" else 1)  # not rolled back
    assert not read_facts(shop.data, shop.config, 0.0).alarms


def test_drift_says_how_few_generations_it_may_look_at(promoted: Shop, tmp_path: Path) -> None:
    """The hundred prompts all trained, validated or were held out; only the held-out ones are news."""
    shop = promoted.copy(tmp_path / "data")
    shop.collect(PROMPTS, seed=1)
    unseen, all_of_them = read_facts(shop.data, shop.config, 0.0).champion_generations
    assert all_of_them == len(PROMPTS)
    splits = Counter(record.split for record in shop.data.log.records() if record.adapter == "v0001")
    trained = shop.data.registry.manifest("v0001").record_ids
    assert splits["heldout"] <= unseen <= all_of_them - splits["validation"] - len(set(trained)) // 2


@pytest.mark.parametrize("also", ["replay", None], ids=["and the replay buffer", "alone"])
def test_where_the_log_was_deleted_nothing_that_was_trained_on_is_held_out(
    promoted: Shop, tmp_path: Path, also: str | None
) -> None:
    """The same prompts in another order: whatever v0001 learned from stays a prompt of training."""
    shop = promoted.copy(tmp_path / "data")
    trained_ids = set(shop.data.registry.manifest("v0001").record_ids)
    trained = {record.prompt for record in shop.data.log.records() if record.id in trained_ids}
    for name in filter(None, ("failures", also)):
        shutil.rmtree(shop.data.root / name)
    shop.data = DataDirectory(shop.data.root)
    shop.collect(PROMPTS[::-1])
    held_out = {record.prompt for record in shop.data.log.records() if record.split != "train"}
    assert held_out
    assert not held_out & trained
    assert read_facts(shop.data, shop.config, 0.0).looks == ()  # nor is what the gate saw new


def test_after_the_log_was_deleted_looks_begin_anew_at_its_present_end(promoted: Shop, tmp_path: Path) -> None:
    shop = promoted.copy(tmp_path / "data")
    shutil.rmtree(shop.data.root / "failures")
    shop = Shop(DataDirectory(shop.data.root), config_of(shop.config.models, training={"min_failure_cases": 10_000}))
    shop.collect(PROMPTS, seed=1)
    assert shop.retrain().steps == ["nothing"]
    shop.collect(LATER, seed=1)
    assert [one.kind for one in read_facts(shop.data, shop.config, 0.0).looks] == ["look"]
