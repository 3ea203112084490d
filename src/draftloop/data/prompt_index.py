"""The index of a log's prompts: what is still known of a prompt when its records are gone. Knows no record and no text.

A compaction drops records, and a prompt keeps its split all the same. So right before it does it puts here, for every
prompt group of the log in the order in which they came, the splits of its lines and its near keys: hashes, from which
nobody reads a prompt. `PromptGroups` learns from them what it would have learned from the lines.

The first line is sealed: how often the log was compacted, the version of the keys, and the sha256 of the other lines.
Of keys of another version the group's name and splits are still known.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ..store.atomic import NewFile
from ..store.files import FILES, Files, reading
from ..store.sealed import DamagedFile
from ..store.sealed_lines import RecordError, check_schema, dump, seal, unseal
from .prompt_groups import KEY_BYTES, KEYS
from .records import Split

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class KnownPrompt:
    """What is known of a prompt group.

    Attributes:
        group: its name, by itself.
        splits: of its lines, the first line's first.
        keys: its near keys; None where nobody knows them any more.
        dropped: whether some of its lines were dropped.
    """

    group: str
    splits: tuple[Split, ...]
    keys: tuple[int, ...] | None
    dropped: bool = False


class PromptIndex:
    """The index at `path`. Making one touches nothing; one that is not there knows no prompt.

    Args:
        path: beside the log.
        files: the seam for the operations that change something.
    """

    def __init__(self, path: Path, files: Files = FILES) -> None:
        self.path = path
        self._files = files

    @property
    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def compactions(self) -> int:
        """How often the log was compacted. Raises as `prompts`."""
        try:
            with reading(self.path), self.path.open("rb") as file:
                return int(self._header(file.readline())["compactions"])
        except FileNotFoundError:
            return 0

    def prompts(self) -> list[KnownPrompt]:
        """Every prompt group of the log at its latest compaction, in the order in which they came.

        Raises:
            DamagedFile: it is not what was written.
            AccessDenied: this user may not read it.
            StoreError: a newer draftloop wrote it.
        """
        try:
            with reading(self.path):
                first, _, rest = self.path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return []
        header = self._header(first)
        if header["sha256"] != hashlib.sha256(rest).hexdigest():
            raise self._damaged("its checksum does not match")
        return [_from_json(orjson.loads(line), header["keys"] == KEYS) for line in rest.splitlines()]

    @contextmanager
    def next_file(self, prompts: Iterable[KnownPrompt]) -> Iterator[NewFile]:
        """The next index, with one more compaction counted, for the one process that compacts.

        It is on disk, and gone after the block unless it was published.

        Raises:
            OSError: what the system said.
        """
        with NewFile(self.path.parent, self._files) as new:
            new.write(self._content(prompts))
            new.settle()
            yield new

    def publish(self, following: NewFile) -> None:
        """Let the next index take the place of this one at one instant. Raises OSError: what the system said."""
        following.publish(self.path)

    def size_with(self, prompts: Iterable[KnownPrompt]) -> int:
        """The bytes that the next index with these prompts takes."""
        return len(self._content(prompts))

    def _content(self, prompts: Iterable[KnownPrompt]) -> bytes:
        rest = b"".join(dump(_to_json(prompt)) + b"\n" for prompt in prompts)
        numbers = {"schema": SCHEMA, "compactions": self.compactions() + 1, "keys": KEYS}
        return seal(dump({**numbers, "sha256": hashlib.sha256(rest).hexdigest()})) + rest

    def _header(self, line: bytes) -> dict[str, Any]:
        try:
            header: dict[str, Any] = orjson.loads(unseal(line))
            check_schema(header.get("schema"), SCHEMA, self.path.name)
        except (RecordError, orjson.JSONDecodeError) as error:
            raise self._damaged(str(error)) from None
        return header

    def _damaged(self, why: str) -> DamagedFile:
        return DamagedFile(
            f"{self.path} is damaged: {why}. Restore it; or delete it, and prompts whose records were dropped from the "
            "log may get another split when they come again."
        )


def _to_json(prompt: KnownPrompt) -> dict[str, Any]:
    keys = prompt.keys
    packed = None if keys is None else b64encode(b"".join(key.to_bytes(KEY_BYTES) for key in keys)).decode()
    return {"dropped": prompt.dropped, "group": prompt.group, "keys": packed, "splits": prompt.splits}


def _from_json(values: dict[str, Any], has_keys: bool) -> KnownPrompt:
    keys = None
    if has_keys and values["keys"] is not None:
        packed = b64decode(values["keys"])
        keys = tuple(int.from_bytes(packed[at : at + KEY_BYTES]) for at in range(0, len(packed), KEY_BYTES))
    return KnownPrompt(values["group"], tuple(values["splits"]), keys, values["dropped"])
