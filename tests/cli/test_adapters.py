"""`adapters`: the versions with their roles, and the pointer."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import write_adapter

from draftloop.registry import Registry


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
    assert (found.code, found.json["status"]) == (2, "error")
    assert "v0002/adapters.safetensors is damaged" in found.err
    assert registry.champion() is None
