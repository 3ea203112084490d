"""A sealed file is read as it was written, or is called damaged, newer, or not to be read, each for what it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from pydantic import TypeAdapter
from rights import of_an_ordinary_user

from draftloop.errors import AccessDenied, StoreError
from draftloop.store.files import FILES
from draftloop.store.sealed import DamagedFile, read_sealed, write_sealed
from draftloop.store.sealed_lines import dump, seal


@dataclass(frozen=True)
class Thing:
    name: str
    schema: Literal[1] = 1


KIND = TypeAdapter(Thing)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "folder" / "thing.json"
    write_sealed(found, Thing("it"), FILES)
    return found


def read(path: Path) -> Thing | None:
    return read_sealed(path, KIND, 1, "Delete it.")


def test_what_was_written_is_read_and_what_is_not_there_is_none(path: Path) -> None:
    assert read(path) == Thing("it")
    assert read(path.with_name("another.json")) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"?", b'{"name":"it","schema":1}', seal(dump({"name": 1, "schema": 1})), seal(dump({"name": "it"}))],
    ids=["empty", "no JSON", "no seal", "another type", "no schema"],
)
def test_what_was_not_written_so_is_damaged_and_says_what_to_do(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"thing\.json is damaged: .*\. Delete it\.$"):
        read(path)


def test_a_newer_schema_is_no_damage(path: Path) -> None:
    path.write_bytes(seal(dump({"name": "it", "schema": 2})))
    with pytest.raises(StoreError, match="Update draftloop") as caught:
        read(path)
    assert not isinstance(caught.value, DamagedFile)


def test_what_this_user_may_not_read_is_no_damage(path: Path) -> None:
    path.chmod(0)
    with of_an_ordinary_user(), pytest.raises(AccessDenied, match="permission denied"):
        read(path)
