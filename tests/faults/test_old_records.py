"""Records of every schema so far, frozen in files that are never changed: read. A newer schema is refused with a word.

`data/records-schema-N.jsonl` and `data/manifest-schema-N.json` were written by the draftloop of that schema.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson
import pytest
from builders import NO_SYNC, make_record, write_adapter
from fault_table import Row

from draftloop.data import records
from draftloop.data.log import FailureLog
from draftloop.data.record_lines import from_line, to_line
from draftloop.data.records import BlobRef, Disagreement, PairId, Record, Sampler
from draftloop.data.replay import ReplayBuffer
from draftloop.errors import StoreError
from draftloop.models import manifest
from draftloop.models.manifest import FileHash, read_manifest_file
from draftloop.registry.registry import Registry
from draftloop.store.sealed_lines import RecordError, seal, unseal

pytestmark = pytest.mark.row("old records")

FROZEN = Path(__file__).parent / "data"


def frozen_log(schema: int, directory: Path) -> FailureLog:
    path = directory / "failures.jsonl"
    shutil.copy(FROZEN / f"records-schema-{schema}.jsonl", path)
    return FailureLog(path, NO_SYNC)


def test_there_is_a_frozen_file_of_every_schema() -> None:
    assert sorted(path.name for path in FROZEN.iterdir()) == [
        *(f"manifest-schema-{schema}.json" for schema in range(1, manifest.SCHEMA + 1)),
        *(f"records-schema-{schema}.jsonl" for schema in range(1, records.SCHEMA + 1)),
    ]


@pytest.mark.parametrize("schema", range(1, records.SCHEMA + 1))
def test_every_frozen_record_is_read_and_can_be_written_beside(schema: int, tmp_path: Path, row: Row) -> None:
    log = frozen_log(schema, tmp_path)
    before = log.path.read_bytes()
    found = list(log.records())
    assert log.damage == []
    assert len(found) == len(before.splitlines())
    new = log.append(make_record())
    assert list(log.records()) == [*found, new]
    assert log.path.read_bytes().startswith(before)
    kept = ReplayBuffer(tmp_path / "replay", 100, NO_SYNC).remember(found, seed=0)
    assert {record.id for record in kept} == {record.id for record in found if record.split == "train"}
    row.did(len(found), f"records of schema {schema}")


def test_the_records_of_schema_1_say_what_they_said(tmp_path: Path) -> None:
    first, odd, block, plain, empty, long = frozen_log(1, tmp_path).records()
    assert first.disagreements == (Disagreement(2, 7, 42, -3.25, -0.25, -0.125, None),)
    assert (first.rounds, first.rule, first.pair) == (
        ((4, 2), (3, 3)),
        "rejection",
        PairId("a" * 64, "b" * 64, "c" * 64),
    )
    assert odd.prompt == "Say caf\udce9 \u202e\u05e9\u05dc\u05d5\u05dd\u202c\0 \U0001f469\u200d\U0001f680"
    assert odd.log_p == (0.0, None, -0.5, -1e-10, -3.5, 0.0)
    assert block.sampler == Sampler(0.8, 0.95, 0.05, 40, 2**64 - 1)
    assert (block.adapter, block.split, block.finish, block.is_failure) == ("v0003", "heldout", "length", False)
    assert (plain.num_draft_tokens, plain.rounds, plain.rule) == (0, ((0, 0), (0, 0)), "match")
    assert (empty.prompt, empty.target_output, empty.rounds) == ("", (), ())
    assert (long.teacher, len(long.disagreements), long.time) == (BlobRef(10, 20, "dd"), 4, 1e18)


def test_what_is_written_today_is_what_was_written_then(tmp_path: Path) -> None:
    """As long as the schema is 1: otherwise its number has to change."""
    lines = (FROZEN / "records-schema-1.jsonl").read_bytes().splitlines(keepends=True)
    assert [to_line(from_line(line)) for line in lines] == lines


def test_a_frozen_manifest_is_read(row: Row) -> None:
    found = read_manifest_file(FROZEN / "manifest-schema-1.json")
    assert (found.name, found.parent, found.draftloop_version) == ("v0007", "v0006", "0.1.0")
    assert found.files["adapters.safetensors"] == FileHash(12345, "ab" * 32)
    assert found.record_ids == (f"{1:032x}", f"{6:032x}")
    assert found.metrics["best"] == {"acceptance": 0.5}
    row.did(1, "manifests of schema 1")


def newer(record: Record, **fields: object) -> bytes:
    values = {**orjson.loads(unseal(to_line(record))), "schema": records.SCHEMA + 1, **fields}
    return seal(orjson.dumps(values, option=orjson.OPT_SORT_KEYS))


@pytest.mark.parametrize("fields", [{}, {"novelty": [1, 2]}, {"rounds": "otherwise", "split": "test"}], ids=str)
def test_a_newer_schema_is_refused_with_a_message_and_neither_read_past_nor_written_over(
    tmp_path: Path, fields: dict[str, object], row: Row
) -> None:
    log = frozen_log(1, tmp_path)
    with log.path.open("ab") as file:
        file.write(newer(make_record(), **fields))
    before = log.path.read_bytes()
    for attempt in (lambda: list(log.records()), lambda: log.append(make_record())):
        with pytest.raises(StoreError, match=r"record has schema 2; .* up to 1\. Update draftloop") as refused:
            attempt()
        assert not isinstance(refused.value, RecordError)
        assert refused.value.exit_code == 1
    assert log.path.read_bytes() == before
    row.did(1, "newer schemas refused")


def test_a_version_of_a_newer_schema_is_refused_with_a_message(tmp_path: Path, row: Row) -> None:
    registry = Registry(tmp_path, NO_SYNC)
    registry.create(write_adapter, {})
    path = registry.root / "v0001" / "manifest.json"
    values = {**orjson.loads(unseal(path.read_bytes())), "schema": manifest.SCHEMA + 1, "novelty": 1}
    path.write_bytes(seal(orjson.dumps(values)))
    for attempt in (registry.promote, registry.manifest):
        with pytest.raises(StoreError, match=r"manifest\.json has schema 2.*Update draftloop"):
            attempt("v0001")
    row.did(1, "newer schemas refused")
