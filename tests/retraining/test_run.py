"""`retrain`: trains, gates and promotes by itself, once; whatever cuts it off is found and finished by the next run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from shop import PROMPTS, Shop, config_of, last_line

from draftloop.errors import LockedError
from draftloop.registry.registry import Pointer
from draftloop.retraining.facts import read_facts
from draftloop.retraining.plan import next_action
from draftloop.retraining.run import give_way


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


@pytest.mark.slow
def test_force_trains_again_and_the_gate_still_decides(promoted: Shop, tmp_path: Path) -> None:
    shop = promoted.copy(tmp_path / "data")
    found = shop.retrain(force=True)
    assert (found.trained, found.version) == (True, "v0002")
    assert found.outcome in ("promoted", "refused")
    verdict = shop.data.verdicts.of("v0002")
    assert verdict is not None
    assert verdict.epoch in (0, 2)  # the first ended at its promotion; 0 where validation liked no later weights


def test_failures_stay_unused_until_there_is_a_verdict_and_an_inconclusive_candidate_is_gated_again(shop: Shop) -> None:
    patient = shop.config
    shop.config = config_of(patient.models, gate={"min_heldout_prompts": 90})
    found = shop.retrain()
    assert (found.outcome, found.exit_code, found.steps) == ("inconclusive", 12, ["train", "wait"])
    assert "of 90 held-out prompts; collect about" in found.why
    assert read_facts(shop.data, shop.config, 0.0).overview.failures_used == 0
    assert not (shop.data.registry.root / "epochs").exists()  # nothing was spent
    shop.config = patient
    again = shop.retrain()
    assert (again.outcome, again.steps, again.version) == ("promoted", ["gate"], "v0001")
    assert read_facts(shop.data, shop.config, 0.0).overview.failures_new == 0


def test_two_at_once_are_one(shop: Shop) -> None:
    before = contents(shop.data.root)
    with shop.data.training_lock(), pytest.raises(LockedError, match="is held by process"):
        shop.retrain()
    after = contents(shop.data.root)
    assert after.pop("runs/.lock")
    assert after == before


def test_old_weights_are_deleted_and_what_they_learned_from_is_not_forgotten(promoted: Shop, tmp_path: Path) -> None:
    shop = promoted.copy(tmp_path / "data")
    shop.config = config_of(shop.config.models, retrain={"keep_versions": 1})
    for seed in (1, 2):
        shop.add_version(0.5, seed)
        shop.retrain()
    assert shop.data.registry.versions() == ["v0001", "v0003"]
    assert shop.data.registry.pruned() == ["v0002"]
    assert read_facts(shop.data, shop.config, 0.0).overview.failures_new == 0


def test_looking_changes_nothing(shop: Shop) -> None:
    before = contents(shop.data.root)
    assert next_action(read_facts(shop.data, shop.config, 0.0), shop.config).action == "train"
    assert contents(shop.data.root) == before


@pytest.mark.parametrize(("wanted", "lower"), [(0, 0), (3, 0), (10, 7)])
def test_giving_way_lowers_the_priority_by_what_is_missing_and_never_raises_it(
    wanted: int, lower: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "nice", lambda more: asked.append(more) or 3 + more)
    give_way(wanted)
    assert asked == [0, lower]
