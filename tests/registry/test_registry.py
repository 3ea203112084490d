"""The registry: immutable versions, one pointer, references that mean one directory or are refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
from builders import RecordedSyncs, write_adapter

from draftloop.data.records import PairId
from draftloop.errors import AdapterDamaged, AdapterError, ChampionMoved, StoreError
from draftloop.models.manifest import verify_adapter
from draftloop.registry.registry import Pointer, Registry
from draftloop.store.journal import Journal
from draftloop.store.sealed_lines import seal, unseal


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "data" / "adapters")


def make(registry: Registry, count: int = 1) -> list[str]:
    return [registry.create(lambda path, i=i: write_adapter(path, i), {}).name for i in range(count)]  # type: ignore[misc]


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_version_holds_what_was_written_and_a_manifest_of_it(registry: Registry) -> None:
    pair = PairId("t", "d", "k")
    given = {
        "parent": "v0000",
        "pair": pair,
        "record_ids": ["1", "2"],
        "config": {"loss": "lk"},
        "metrics": {"a": 0.5},
        "created": 12.5,
        "draftloop_version": "0.1.0",
    }
    version = registry.create(write_adapter, given)
    manifest = version.manifest
    assert (version.name, version.path, manifest.name) == ("v0001", registry.root / "v0001", "v0001")
    assert (manifest.parent, manifest.pair, manifest.record_ids, manifest.created) == ("v0000", pair, ("1", "2"), 12.5)
    assert (manifest.config, manifest.metrics, manifest.draftloop_version) == ({"loss": "lk"}, {"a": 0.5}, "0.1.0")
    assert manifest.files.keys() == {"adapters.safetensors", "adapter_config.json"}
    assert registry.verify(version.path) == manifest == verify_adapter(version.path)
    assert json.loads((version.path / "manifest.json").read_bytes())["schema"] == 1


def test_versions_count_up_past_four_digits_in_the_order_of_their_numbers(registry: Registry) -> None:
    assert make(registry, 2) == ["v0001", "v0002"]
    (registry.root / "v9999").mkdir()
    assert make(registry) == ["v10000"]
    assert registry.versions() == ["v0001", "v0002", "v9999", "v10000"]
    assert registry.latest() == "v10000"


def test_an_empty_registry_has_nothing_and_reading_makes_nothing(registry: Registry) -> None:
    assert (registry.versions(), registry.latest(), registry.champion(), registry.previous()) == ([], None, None, None)
    assert not registry.root.exists()


def test_the_name_of_a_champion_is_not_given_again_after_it_was_deleted(registry: Registry) -> None:
    make(registry, 2)
    registry.promote("v0002")
    (registry.root / "v0002").rename(registry.root.parent / "gone")
    assert make(registry) == ["v0003"]


def test_everything_is_private(registry: Registry) -> None:
    make(registry)
    registry.promote("v0001")
    for path in [registry.root, *registry.root.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_new_version_and_a_promotion_outlive_a_power_loss_on_macos_too(registry: Registry) -> None:
    make(registry)
    files = RecordedSyncs()
    careful = Registry(registry.root, files)
    name = careful.create(write_adapter, {}).name
    assert files.full.count(True) == 5  # weights, configuration, manifest, their directory and its name
    files.full.clear()
    careful.promote(name)
    assert files.full == [True] * len(files.full)  # the journal, the pointer and their names
    assert len(files.full) >= 3


def test_promoting_moves_champion_and_previous_together(registry: Registry) -> None:
    make(registry, 3)
    assert registry.promote("v0001") == Pointer("v0001", None, 1)
    assert registry.promote("v0003") == Pointer("v0003", "v0001", 2)
    assert (registry.champion(), registry.previous(), registry.latest()) == ("v0003", "v0001", "v0003")
    stored = json.loads((registry.root / "pointer.json").read_bytes())
    assert stored == {"champion": "v0003", "previous": "v0001", "sequence": 2}


def test_promoting_the_previous_one_is_a_rollback(registry: Registry) -> None:
    make(registry, 2)
    for name in ("v0001", "v0002", "v0001"):
        registry.promote(name)
    assert registry.pointer() == Pointer("v0001", "v0002", 3)


def test_promoting_the_champion_again_changes_nothing(registry: Registry) -> None:
    make(registry, 2)
    registry.promote("v0001")
    before = registry.promote("v0002")
    assert registry.promote("v0002") == before == registry.pointer()
    assert len((registry.root / "audit.jsonl").read_bytes().splitlines()) == 2


def test_every_promotion_is_audited_even_after_a_torn_line(registry: Registry) -> None:
    make(registry, 2)
    registry.promote("v0001", why="passed the gate")
    with (registry.root / "audit.jsonl").open("ab") as file:
        file.write(b'{"torn')
    registry.promote("v0002")
    first, torn, second = (registry.root / "audit.jsonl").read_bytes().splitlines()
    assert torn == b'{"torn'
    entry = json.loads(unseal(first))
    assert entry.pop("when") > 0
    moved = {"champion": "v0001", "previous": None, "pointer": 1, "sequence": 1}
    assert entry == {"what": "promote", "why": "passed the gate", **moved}
    assert json.loads(second)["why"] == "by hand"


def test_a_damaged_version_is_not_promoted(registry: Registry) -> None:
    make(registry, 2)
    registry.promote("v0001")
    weights = registry.root / "v0002" / "adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(AdapterError, match=r"v0002/adapters\.safetensors is damaged.*expected"):
        registry.promote("v0002")
    assert registry.pointer() == Pointer("v0001", None, 1)
    assert len((registry.root / "audit.jsonl").read_bytes().splitlines()) == 1


@pytest.mark.parametrize("damage", ["missing weights", "missing config", "changed config", "unlisted", "no manifest"])
def test_damage_of_a_version_is_named(registry: Registry, damage: str) -> None:
    make(registry)
    path = registry.root / "v0001"
    if damage == "missing weights":
        (path / "adapters.safetensors").unlink()
    elif damage == "missing config":
        (path / "adapter_config.json").unlink()
    elif damage == "changed config":
        (path / "adapter_config.json").write_bytes((path / "adapter_config.json").read_bytes() + b" ")
    elif damage == "unlisted":
        values = orjson.loads(unseal((path / "manifest.json").read_bytes()))
        del values["files"]["adapters.safetensors"]
        (path / "manifest.json").write_bytes(seal(orjson.dumps(values)))
    else:
        (path / "manifest.json").unlink()
    file = {"missing config": "adapter_config.json", "changed config": "adapter_config.json", "no manifest": "manifest"}
    with pytest.raises(AdapterError, match=file.get(damage, "adapters.safetensors")):
        registry.verify(path)


def test_a_manifest_of_a_newer_draftloop_asks_for_an_update(registry: Registry) -> None:
    make(registry)
    path = registry.root / "v0001" / "manifest.json"
    values = {**orjson.loads(unseal(path.read_bytes())), "schema": 2, "novelty": 1}
    path.write_bytes(seal(orjson.dumps(values)))
    with pytest.raises(StoreError, match=r"manifest\.json has schema 2.*Update draftloop"):
        registry.verify(path.parent)


def test_a_directory_from_elsewhere_needs_no_manifest(registry: Registry, tmp_path: Path) -> None:
    write_adapter(tmp_path)
    assert registry.verify(tmp_path) is None
    assert registry.resolve(str(tmp_path)) == tmp_path


def test_a_copied_version_keeps_its_manifest_elsewhere(registry: Registry, tmp_path: Path) -> None:
    make(registry)
    (registry.root / "v0001").rename(tmp_path / "mine")
    manifest = registry.verify(tmp_path / "mine")
    assert manifest is not None
    assert manifest.name == "v0001"


@pytest.mark.parametrize(
    "given",
    [
        {"metrics": {"loss": [float("nan")]}},
        {"config": {"path": Path()}},
        {"mood": 1},
        {"record_ids": 5},
        {"config": 1},
    ],
)
def test_a_manifest_that_cannot_be_kept_is_refused_before_anything_is_written(
    registry: Registry, given: dict[str, Any]
) -> None:
    written: list[Path] = []
    with pytest.raises(StoreError, match="manifest of v0001 cannot be written"):
        registry.create(written.append, given)
    assert (registry.versions(), written) == ([], [])


def test_a_directory_without_a_loadable_adapter_becomes_no_version(registry: Registry) -> None:
    with pytest.raises(AdapterError, match="adapter_config"):
        registry.create(lambda _path: None, {})
    assert names(registry.root) == {".lock"}


def test_an_error_of_the_writer_goes_through_and_leaves_nothing(registry: Registry) -> None:
    def fail(path: Path) -> None:
        write_adapter(path)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        registry.create(fail, {})
    assert names(registry.root) == {".lock"}


def test_what_a_killed_process_left_is_removed_by_the_next_create(registry: Registry) -> None:
    (registry.root / ".tmp-1" / "inner").mkdir(parents=True)
    (registry.root / ".tmp-2").touch()
    (registry.root / "mine").mkdir()
    make(registry)
    assert names(registry.root) == {".lock", "mine", "v0001"}


def test_creators_at_the_same_time_get_names_of_their_own(registry: Registry) -> None:
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: Registry(registry.root).create(write_adapter, {}).name, range(6)))
    assert sorted(made) == registry.versions() == [f"v{i:04d}" for i in range(1, 7)]


def test_references_mean_directories(registry: Registry) -> None:
    assert registry.resolve("none") is None
    assert registry.resolve("champion") is None
    make(registry, 2)
    registry.promote("v0001")
    assert registry.resolve("champion") == registry.root / "v0001"
    assert registry.resolve("latest") == registry.root / "v0002"
    assert registry.resolve("v0002") == registry.root / "v0002"
    assert registry.resolve(str(registry.root / "v0002")) == registry.root / "v0002"


@pytest.mark.parametrize("reference", ["v0009", "nonsense", "V0001", "v1", "../v0001x", "latest "])
def test_what_is_not_there_is_refused_with_a_list_of_what_is(registry: Registry, reference: str) -> None:
    make(registry, 2)
    with pytest.raises(AdapterError, match="Existing versions: v0001, v0002"):
        registry.resolve(reference)


@pytest.mark.parametrize("reference", ["latest", "v0001"])
def test_without_versions_it_says_how_to_make_one(registry: Registry, reference: str) -> None:
    with pytest.raises(AdapterError, match="No version exists yet: `draftloop train`"):
        registry.resolve(reference)


def test_a_champion_that_was_deleted_is_missed_and_not_replaced_by_the_bare_draft(registry: Registry) -> None:
    make(registry, 2)
    registry.promote("v0001")
    (registry.root / "v0001").rename(registry.root.parent / "gone")
    with pytest.raises(AdapterError, match=r"No adapter v0001.*v0002"):
        registry.resolve("champion")


@pytest.mark.parametrize("reference", ["", "a\0b", "x" * 256, "y/" * 3000, "\ud800", "/".join(["z" * 300] * 2)])
def test_what_no_file_system_takes_is_refused(registry: Registry, reference: str) -> None:
    with pytest.raises(AdapterError, match="cannot name an adapter"):
        registry.resolve(reference)


def test_a_directory_that_is_no_adapter_is_refused(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"lacks adapters\.safetensors"):
        registry.resolve(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["../../outside", "/etc", "..", "%2e%2e/outside", "..\\outside", "champion", "v0001/../x"]
)
def test_only_a_version_name_is_promoted(registry: Registry, tmp_path: Path, name: str) -> None:
    make(registry)
    (tmp_path / "outside").mkdir()
    write_adapter(tmp_path / "outside")
    with pytest.raises(AdapterError, match="No adapter"):
        registry.promote(name)
    assert registry.pointer() == Pointer()


def test_a_symbolic_link_among_the_versions_is_refused(registry: Registry, tmp_path: Path) -> None:
    make(registry)
    (tmp_path / "outside").mkdir()
    write_adapter(tmp_path / "outside")
    for name in ("v0002", "link"):
        (registry.root / name).symlink_to(tmp_path / "outside")
    assert registry.versions() == ["v0001"]
    for attempt in (registry.resolve, registry.promote, lambda name: registry.verify(registry.root / name)):
        with pytest.raises(AdapterError, match="symbolic link"):
            attempt("v0002")
    with pytest.raises(AdapterError, match="symbolic link"):
        registry.resolve(str(registry.root / "link"))
    assert make(registry) == ["v0003"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"champion":1}', b'{"sequence":-1}', b'{"mood":1}'])
def test_a_damaged_pointer_is_reported_with_the_way_out(registry: Registry, content: bytes) -> None:
    make(registry)
    (registry.root / "pointer.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"pointer\.json is damaged.*promote a version again.*v0001"):
        registry.champion()


def test_rolling_back_changes_champion_and_previous_over_and_is_audited(registry: Registry) -> None:
    make(registry, 2)
    registry.promote("v0001")
    registry.promote("v0002")
    assert registry.rollback("it talks worse") == Pointer("v0001", "v0002", 3)
    assert registry.pointer() == Pointer("v0001", "v0002", 3)
    assert registry.rollback() == Pointer("v0002", "v0001", 4)
    last = Journal(registry.root / "audit.jsonl").entries()[-2]
    assert (last["what"], last["why"], last["champion"], last["pointer"]) == ("rollback", "it talks worse", "v0001", 3)


def test_the_first_champion_is_rolled_back_to_the_bare_draft(registry: Registry) -> None:
    make(registry)
    registry.promote("v0001")
    assert registry.rollback() == Pointer(None, "v0001", 2)
    assert registry.resolve("champion") is None
    assert registry.rollback() == Pointer("v0001", None, 3)


def test_rolling_back_nothing_is_refused(registry: Registry) -> None:
    make(registry)
    with pytest.raises(AdapterError, match="nothing was ever promoted"):
        registry.rollback()


def test_a_damaged_previous_is_not_rolled_back_to(registry: Registry) -> None:
    make(registry, 2)
    registry.promote("v0001")
    registry.promote("v0002")
    (registry.root / "v0001" / "adapters.safetensors").write_bytes(b"x")
    with pytest.raises(AdapterError, match="is damaged"):
        registry.rollback()
    assert registry.pointer() == Pointer("v0002", "v0001", 2)


@pytest.mark.parametrize("move", [lambda r: r.promote("v0003", "late", 1), lambda r: r.rollback("late", 1)])
def test_a_decision_against_a_champion_that_is_no_more_moves_nothing(registry: Registry, move: Any) -> None:
    make(registry, 3)
    registry.promote("v0001")
    registry.promote("v0002")
    with pytest.raises(ChampionMoved, match="v0002 now, by move 2 of the pointer; this was decided at move 1"):
        move(registry)
    assert registry.pointer() == Pointer("v0002", "v0001", 2)
    assert registry.promote("v0003", "in time", 2).champion == "v0003"


def test_pruning_keeps_the_newest_the_champion_the_previous_and_the_protected(registry: Registry) -> None:
    make(registry, 7)
    registry.promote("v0001")
    registry.promote("v0002")
    assert registry.prunable(2, protected={"v0004"}) == ["v0003", "v0005"]
    assert registry.versions() == [f"v000{i}" for i in range(1, 8)]
    assert registry.prune(2, protected={"v0004"}) == ["v0003", "v0005"]
    assert registry.versions() == ["v0001", "v0002", "v0004", "v0006", "v0007"]
    assert registry.pruned() == ["v0003", "v0005"]
    assert registry.prune(2, protected={"v0004"}) == []


def test_a_pruned_version_keeps_its_manifest_and_its_name(registry: Registry) -> None:
    version = registry.create(write_adapter, {"record_ids": ["1", "2"]})
    make(registry)
    registry.prune(1)
    assert registry.manifest("v0001") == version.manifest
    with pytest.raises(AdapterError, match="weights of v0001 were deleted as old ones"):
        registry.promote("v0001")
    registry.prune(1)
    (registry.root / "v0002").rename(registry.root / "elsewhere")
    assert make(registry) == ["v0002"]  # nothing is left that knows of the other v0002
    assert registry.pruned() == ["v0001"]


def test_a_version_with_a_damaged_manifest_is_not_pruned(registry: Registry) -> None:
    make(registry, 2)
    (registry.root / "v0001" / "manifest.json").write_bytes(b"{}")
    registry.create(write_adapter, {})
    assert registry.prunable(1) == registry.prune(1) == ["v0002"]
    assert registry.versions() == ["v0001", "v0003"]


def test_a_version_is_rolled_back_until_a_move_brings_it_back(registry: Registry) -> None:
    make(registry, 3)
    assert registry.rolled_back() == set()
    registry.promote("v0001")
    registry.promote("v0002")
    assert registry.rolled_back() == set()
    registry.rollback()
    assert registry.rolled_back() == {"v0002"}
    registry.promote("v0003")
    registry.rollback()
    assert registry.rolled_back() == {"v0002", "v0003"}
    registry.rollback()  # and back again
    assert registry.rolled_back() == {"v0001", "v0002"}
    registry.promote("v0002")
    assert registry.rolled_back() == {"v0001"}


def test_a_move_that_was_cut_off_took_nothing_out_of_use(registry: Registry) -> None:
    make(registry, 1)
    registry.promote("v0001")
    before = (registry.root / "pointer.json").read_bytes()
    registry.rollback()
    (registry.root / "pointer.json").write_bytes(before)
    assert registry.rolled_back() == set()


def test_a_lost_pointer_gives_no_number_twice(registry: Registry) -> None:
    make(registry, 2)
    registry.promote("v0001")
    registry.promote("v0002")
    (registry.root / "pointer.json").unlink()
    assert registry.pointer() == Pointer(None, None, 2)
    with pytest.raises(AdapterError, match="nothing to go back to"):
        registry.rollback()
    assert registry.promote("v0001") == Pointer("v0001", None, 3)


def test_where_the_first_move_alone_was_noted_it_may_still_be_to_be_made(registry: Registry) -> None:
    make(registry, 1)
    registry.promote("v0001")
    (registry.root / "pointer.json").unlink()
    assert registry.pointer() == Pointer()
    assert registry.promote("v0001") == Pointer("v0001", None, 1)


def test_a_name_that_a_verdict_goes_by_is_not_given_again(registry: Registry) -> None:
    make(registry, 1)
    (registry.root / "verdicts").mkdir()
    (registry.root / "verdicts" / "v0007.json").touch()
    assert registry.create(write_adapter, {}).name == "v0008"


@pytest.mark.parametrize("name", ["../../../evil", "v0001\x1b[31m", "v1", "", "v0001\n"])
def test_a_manifest_that_calls_its_version_by_no_name_of_a_version_is_damaged(tmp_path: Path, name: str) -> None:
    """Sealed or not, what it says would be printed."""
    registry = Registry(tmp_path)
    version = registry.create(write_adapter, {})
    body = orjson.dumps({**orjson.loads(unseal((version.path / "manifest.json").read_bytes())), "name": name})
    (version.path / "manifest.json").write_bytes(seal(body))
    with pytest.raises(AdapterDamaged, match=r"manifest\.json is damaged"):
        registry.verify(version.path)


def test_what_is_refused_or_has_nothing_to_do_makes_no_directory(tmp_path: Path) -> None:
    """A lock would."""
    registry = Registry(tmp_path / "data" / "adapters")
    for refused in (registry.rollback, lambda: registry.promote("v0001")):
        with pytest.raises(AdapterError):
            refused()
    assert registry.prune(1) == []
    assert registry.promote(None).champion is None
    assert list(tmp_path.iterdir()) == []
