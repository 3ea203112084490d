"""`adapters`: the versions with their roles, and the pointer."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import write_adapter

from draftloop.evaluation.looks import Look
from draftloop.evaluation.promotion_watch import PromotionWatch
from draftloop.registry.registry import Registry


@pytest.fixture
def registry(_place: None) -> Registry:
    found = Registry(Path("data/adapters"))
    for i in range(3):
        parent = found.latest()
        found.create(write_adapter, {"parent": parent, "record_ids": [f"{i:032x}"] * i, "metrics": {"loss": 1.5}})
    return found


def test_nothing_is_listed_where_there_is_nothing(call) -> None:
    found = call("adapters", "list")
    assert (found.code, found.out, found.err) == (0, "", "no adapter yet: `train` makes one\n")
    listed = call("adapters", "list", "--json").json
    assert (listed["status"], listed["adapters"], listed["champion"], listed["previous"]) == ("ok", [], None, None)
    assert not Path("data").exists()


def test_versions_are_listed_with_role_parent_and_records(call, registry: Registry) -> None:
    registry.promote("v0001")
    registry.promote("v0003")
    listed = call("adapters", "list", "--json").json
    rows = [(row["version"], row["role"], row["parent"], row["records"]) for row in listed["adapters"]]
    assert rows == [("v0001", "previous", None, 0), ("v0002", "", "v0001", 1), ("v0003", "champion", "v0002", 2)]
    assert (listed["champion"], listed["previous"]) == ("v0003", "v0001")
    assert listed["adapters"][0]["metrics"] == {"loss": 1.5}
    table = call("adapters", "list").out
    assert all(word in table for word in ("v0001", "v0002", "v0003", "champion", "previous"))


def test_promoting_moves_the_pointer_and_says_so(call, registry: Registry) -> None:
    assert call("adapters", "promote", "v0002").out == "champion: v0002 (previous: none)\n"
    found = call("adapters", "promote", "latest", "--json").json
    assert (found["status"], found["champion"], found["previous"]) == ("ok", "v0003", "v0002")
    assert (registry.champion(), registry.previous()) == ("v0003", "v0002")


def test_the_reason_goes_into_the_audit_log(call, registry: Registry) -> None:
    call("adapters", "promote", "v0001", "--why", "it talks better")
    assert "it talks better" in (registry.root / "audit.jsonl").read_text()


def test_a_damaged_version_is_not_promoted(call, registry: Registry) -> None:
    weights = registry.root / "v0002" / "adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    found = call("adapters", "promote", "v0002", "--json")
    assert (found.code, found.json["status"]) == (1, "error")
    assert "v0002/adapters.safetensors is damaged" in found.err
    assert registry.champion() is None


def test_the_bare_draft_can_be_made_the_champion_again(call, registry: Registry) -> None:
    call("adapters", "promote", "v0001")
    call("adapters", "promote", "v0002")
    found = call("adapters", "promote", "none")
    assert found.out == "champion: none: the bare draft is in use (previous: v0002)\n"
    assert registry.rolled_back() == {"v0002"}
    listed = {row["version"]: row["role"] for row in call("adapters", "list", "--json").json["adapters"]}
    assert listed == {"v0001": "", "v0002": "rolled back", "v0003": ""}


def test_a_damaged_verdict_hides_no_other_version(call, registry: Registry) -> None:
    (registry.root / "verdicts").mkdir()
    (registry.root / "verdicts" / "v0001.json").write_bytes(b"?")
    found = call("adapters", "list")
    assert found.code == 0
    assert "verdicts/v0001.json is damaged" in found.err
    assert "v0002" in found.out


def test_rolling_back_and_coming_back(call, registry: Registry) -> None:
    assert call("adapters", "rollback").code == 2
    call("adapters", "promote", "v0001")
    assert call("adapters", "rollback").out == "champion: none: the bare draft is in use (previous: v0001)\n"
    found = call("adapters", "rollback", "--why", "it was fine", "--json").json
    assert (found["champion"], found["previous"]) == ("v0001", None)
    assert "it was fine" in (registry.root / "audit.jsonl").read_text()


def test_a_version_is_shown_with_its_origin_and_verdict(call, registry: Registry) -> None:
    call("adapters", "promote", "v0002", "--why", "it talks better")
    found = call("adapters", "show", "champion")
    for said in ("v0002 (champion)", "v0001", "1 records", "by hand", "it talks better", "whole"):
        assert said in found.out
    shown = call("adapters", "show", "v0002", "--json").json
    assert (shown["version"], shown["parent"], shown["whole"]) == ("v0002", "v0001", True)
    assert shown["files"].keys() == {"adapters.safetensors", "adapter_config.json"}
    assert (shown["verdict"]["outcome"], shown["record_ids"]) == ("by hand", [f"{1:032x}"])
    assert call("adapters", "show", "v0003", "--json").json["verdict"] is None


def test_showing_what_is_not_there_is_refused(call, registry: Registry) -> None:
    for name in ("none", "champion", "v0009", "../x"):
        found = call("adapters", "show", name)
        assert (found.code, found.err.count("\n")) == (2, 1), name
    (registry.root / "v0001" / "adapters.safetensors").write_bytes(b"x")
    assert "is damaged" in call("adapters", "show", "v0001").err


def test_pruning_says_first_what_it_would_delete(call, registry: Registry) -> None:
    assert call("adapters", "prune", "--keep", "1", "--dry-run").out == "would delete the weights of: v0001, v0002\n"
    assert registry.versions() == ["v0001", "v0002", "v0003"]
    found = call("adapters", "prune", "--keep", "1", "--json").json
    assert (found["pruned"], found["kept"]) == (["v0001", "v0002"], ["v0003"])
    assert call("adapters", "list", "--json").json["pruned"] == ["v0001", "v0002"]


def test_one_damaged_manifest_does_not_hide_the_other_versions(call, registry: Registry) -> None:
    (registry.root / "v0002" / "manifest.json").write_bytes(b"{}")
    found = call("adapters", "list")
    assert found.code == 0
    assert "v0001" in found.out
    assert "v0003" in found.out
    assert "damaged:" in found.err
    assert "v0002" in found.err


def test_the_looks_since_a_promotion_are_shown(call, registry: Registry) -> None:
    call("adapters", "promote", "v0002")
    watch = PromotionWatch(registry.root)
    watching = watch.of(registry.pointer())
    assert watching is not None
    assert call("adapters", "show", "champion", "--json").json["looks"] == []
    look = Look("look", "chat", 12, ("a",), 0.0025)
    watch.note_done(watch.note_begun(watching, look), look, 0.5)
    (shown,) = call("adapters", "show", "champion", "--json").json["looks"]
    assert (shown["unit"], shown["groups"], shown["p_value"]) == ("chat", 12, 0.5)
    said = "look at 12 new held-out prompts of source chat: not proven worse (p = 0.5 > 0.0025)"
    assert said in call("adapters", "show", "v0002").out
    assert "since its promotion" not in call("adapters", "show", "v0001").out


def test_what_a_promotion_by_hand_is_new_from_is_fixed_at_once(call, registry: Registry) -> None:
    call("adapters", "promote", "v0002")
    call("adapters", "promote", "v0003")
    assert PromotionWatch(registry.root).of(registry.pointer()) is not None
    call("adapters", "rollback")
    watching = PromotionWatch(registry.root).of(registry.pointer())
    assert watching is not None
    assert (watching.sequence, watching.champion, watching.previous) == (3, "v0002", "v0003")
