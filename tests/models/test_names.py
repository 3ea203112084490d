"""A data directory calls a model by one name for ever: its fingerprint, or the former one where it began with that."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from builders import NO_SYNC, failing_files, make_record, write_adapter

from draftloop.data.record_lines import to_line
from draftloop.data.records import PairId
from draftloop.data_directory import DataDirectory
from draftloop.errors import StoreError
from draftloop.models.fingerprints import Fingerprints
from draftloop.models.names import FILE, ModelNames
from draftloop.store.sealed_lines import seal, unseal

MODEL = Fingerprints(model="1" * 64, former="0" * 64, template="a" * 64)
RENAMED = Fingerprints(model="1" * 64, former="f" * 64, template="b" * 64)  # the same with another chat template
OTHER = Fingerprints(model="2" * 64, former="3" * 64, template=None)


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    return DataDirectory(tmp_path / "data", files=NO_SYNC)


def logged(data: DataDirectory, target: str) -> None:
    data.log.append(make_record(pair=PairId(target, "b" * 64, "c" * 64)))


def versioned(data: DataDirectory, draft: str) -> None:
    data.registry.create(write_adapter, {"pair": PairId("a" * 64, draft, "c" * 64)})


def pruned(data: DataDirectory, draft: str) -> None:
    versioned(data, draft)
    versioned(data, "d" * 64)
    assert data.registry.prune(keep=1) == ["v0001"]


def replayed(data: DataDirectory, target: str) -> None:
    data.replay.path.parent.mkdir(parents=True)
    data.replay.path.write_bytes(to_line(make_record(pair=PairId(target, "b" * 64, "c" * 64))))


def audited(data: DataDirectory, target: str) -> None:
    data.audit.append({"target": target})


def test_a_model_is_called_by_its_fingerprint_where_nothing_is_yet_and_nothing_is_written(data: DataDirectory) -> None:
    assert data.names.of(MODEL) == MODEL.model
    data.names.keep(MODEL, OTHER)
    assert data.names.changed_template(MODEL) is None
    assert not data.root.exists()


@pytest.mark.parametrize("begun", [logged, versioned, pruned, replayed, audited], ids=lambda f: f.__name__)
def test_what_began_with_the_former_fingerprint_goes_on_with_it_whatever_becomes_of_the_template(
    begun: object, data: DataDirectory
) -> None:
    begun(data, MODEL.former)  # type: ignore[operator]
    assert data.names.of(MODEL) == MODEL.former
    assert data.names.of(RENAMED) == RENAMED.model  # not yet seen to be the same
    data.names.keep(MODEL, OTHER)
    assert data.names.of(RENAMED) == MODEL.former
    assert data.names.of(OTHER) == OTHER.model
    assert ModelNames(data.root).of(RENAMED) == MODEL.former


def test_what_began_with_the_fingerprint_of_today_keeps_it(data: DataDirectory) -> None:
    logged(data, MODEL.model)
    data.names.keep(MODEL)
    logged(data, MODEL.former)
    assert data.names.of(MODEL) == MODEL.model


def test_two_models_that_the_former_fingerprint_did_not_tell_apart_have_two_names(data: DataDirectory) -> None:
    logged(data, MODEL.former)
    data.names.keep(MODEL)
    alike = Fingerprints("9" * 64, MODEL.former, MODEL.template)
    assert data.names.of(alike) == alike.model
    data.names.keep(alike)
    assert (data.names.of(MODEL), data.names.of(alike)) == (MODEL.former, alike.model)
    assert MODEL.former in data.names.all_of(MODEL)
    assert MODEL.former not in data.names.all_of(alike)


def test_asking_writes_nothing_and_keeping_twice_writes_once(data: DataDirectory) -> None:
    logged(data, MODEL.former)
    data.names.of(MODEL)
    assert not (data.root / FILE).exists()
    data.names.keep(MODEL)
    before = (data.root / FILE).stat()
    data.names.keep(MODEL)
    assert (data.root / FILE).stat() == before
    assert before.st_mode & 0o777 == 0o600


def test_two_that_keep_names_lose_none_of_each_other(data: DataDirectory) -> None:
    logged(data, MODEL.former)
    one, two = ModelNames(data.root, NO_SYNC), ModelNames(data.root, NO_SYNC)
    one.keep(MODEL)
    two.keep(OTHER)
    one.keep_template(OTHER)
    names = orjson.loads(unseal((data.root / FILE).read_bytes()))
    assert names["names"] == {MODEL.model: MODEL.former, OTHER.model: OTHER.model}
    assert names["templates"] == {MODEL.former: MODEL.template, OTHER.model: None}


def test_a_template_that_changed_since_draftloop_0_1_collected_is_named(data: DataDirectory) -> None:
    logged(data, MODEL.former)
    data.names.keep(MODEL)
    assert data.names.changed_template(MODEL) is None
    assert "aaaaaaaaaaaa -> bbbbbbbbbbbb" in str(data.names.changed_template(RENAMED))


def test_a_template_that_changed_is_named_once_with_both_fingerprints(data: DataDirectory) -> None:
    assert data.names.changed_template(MODEL) is None  # nothing was collected
    data.names.keep_template(MODEL)
    assert data.names.changed_template(MODEL) is None
    said = data.names.changed_template(RENAMED)
    assert said is not None
    assert "chat template changed" in said
    assert "aaaaaaaaaaaa -> bbbbbbbbbbbb" in said
    data.names.keep_template(RENAMED)
    assert data.names.changed_template(RENAMED) is None
    bare = Fingerprints(MODEL.model, MODEL.former, None)
    assert "bbbbbbbbbbbb -> none" in str(data.names.changed_template(bare))


@pytest.mark.parametrize("content", [b"", b"{}", b'{"names":{}}\n', b"\xff", seal(b'{"schema":1,"names":[]}')], ids=len)
def test_a_damaged_file_is_refused_with_what_to_do(content: bytes, data: DataDirectory) -> None:
    data.root.mkdir()
    (data.root / FILE).write_bytes(content)
    with pytest.raises(StoreError, match=r"models\.json is damaged: .*Restore it, or delete it"):
        data.names.of(MODEL)


def test_a_newer_file_is_refused(data: DataDirectory) -> None:
    data.root.mkdir()
    (data.root / FILE).write_bytes(seal(b'{"schema":2}'))
    with pytest.raises(StoreError, match="Update draftloop"):
        data.names.of(MODEL)


def test_a_disk_that_refuses_leaves_the_names_as_they_were(data: DataDirectory) -> None:
    logged(data, MODEL.former)
    data.names.keep(OTHER)
    before = (data.root / FILE).read_bytes()
    for at in (1, 2, 3, 4):  # open, write, sync, rename
        with pytest.raises(StoreError, match="could not be written"):
            ModelNames(data.root, failing_files(at)).keep(MODEL)
        assert (data.root / FILE).read_bytes() == before
    data.names.keep(MODEL)
    assert (data.root / FILE).read_bytes() != before
