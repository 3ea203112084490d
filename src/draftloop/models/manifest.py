"""The manifest of an adapter version lists its files and its origin; its hashes prove the files. No mlx.

`manifest.json` lies in the version's directory, sealed by a checksum, and names size and sha256 of every other file.
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import ConfigDict, Field, TypeAdapter

from ..data.records import PairId
from ..errors import AdapterDamaged, StoreError
from ..store.files import reading
from ..store.sealed import DamagedFile, read_sealed
from ..store.sealed_lines import dump
from .adapter_format import CONFIG, WEIGHTS, check_finite, read_config, read_shapes

SCHEMA = 1
MANIFEST = "manifest.json"
_CLOSED = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class FileHash:
    """What a file of a version must be: its size in bytes and its sha256 in hex."""

    size: Annotated[int, Field(strict=True, ge=0)]
    sha256: str
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The files and the origin of a version.

    Attributes:
        name: the version's own name; files: every file but the manifest, by its path inside the directory.
        created: unix seconds.
        parent: the version it was trained from, None when it started from the bare draft.
        record_ids: the records it was trained on.
        trained_groups: their prompt groups, by themselves, so that their prompts are known when the log is gone.
        passed_over_ids: failures in the log that no step was trained on: unusable ones, and those after an early end.
    """

    name: Annotated[str, Field(pattern=r"^v[0-9]{4,}$")]
    files: dict[str, FileHash]
    created: float
    parent: str | None = None
    pair: PairId | None = None
    record_ids: tuple[str, ...] = ()
    trained_groups: tuple[str, ...] = ()
    passed_over_ids: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    draftloop_version: str | None = None
    schema: Literal[1] = 1
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


_MANIFEST = TypeAdapter(Manifest)


def verify_adapter(path: Path) -> Manifest | None:
    """Prove that an adapter directory is what its manifest says, and that its config and weights can be used.

    Returns:
        The manifest; None for a directory from elsewhere that has none, of which no hash could be checked.

    Raises:
        AdapterError: a file is missing or damaged, or a weight is NaN or infinite; it is named.
        StoreError: a newer draftloop wrote the manifest.
    """
    manifest = read_manifest(path)
    if manifest is not None:
        _check_hashes(path, manifest)
    read_config(path)
    read_shapes(path)
    check_finite(path)
    return manifest


def make_manifest(given: dict[str, Any], name: str, hashes: dict[str, FileHash]) -> Manifest:
    """The manifest of `given` fields, as it will read back. Raises StoreError: one of them cannot be kept."""
    values = {"created": time.time(), **given, "name": name, "files": hashes, "schema": SCHEMA}
    try:
        if not _all_finite(values):
            raise ValueError("a number in it is NaN or infinite, which JSON cannot keep")
        return _MANIFEST.validate_python(orjson.loads(dump(values)))
    except (TypeError, ValueError) as error:
        raise StoreError(f"The manifest of {name} cannot be written: {error}") from error


def _all_finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(_all_finite(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_all_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of an adapter directory; None where it has none. Raises as `read_manifest_file`."""
    return read_manifest_file(path / MANIFEST)


def read_manifest_file(path: Path) -> Manifest | None:
    """The manifest in a file; None where there is none.

    Raises:
        AdapterDamaged: it is not what was written.
        AccessDenied: this user may not read it.
        StoreError: a newer draftloop wrote it.
    """
    try:
        return read_sealed(path, _MANIFEST, SCHEMA, "Take the adapter from its source again.")
    except DamagedFile as error:
        raise AdapterDamaged(str(error)) from None
    except OSError as error:
        raise AdapterDamaged(f"{path} cannot be read: {error}. Take the adapter from its source again.") from None


def hash_files(directory: Path) -> dict[str, FileHash]:
    """Size and sha256 of every file under a version's directory but its manifest."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)
    hashes = {}
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        hashes[path.relative_to(directory).as_posix()] = FileHash(path.stat().st_size, digest)
    return hashes


def _check_hashes(path: Path, manifest: Manifest) -> None:
    try:
        with reading(path):
            hashes = hash_files(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from None
    for name in sorted({WEIGHTS, CONFIG} | manifest.files.keys()):
        if name not in manifest.files or hashes.get(name) != manifest.files[name]:
            wanted = manifest.files.get(name)
            raise AdapterDamaged(
                f"{path / name} is damaged: found {_said(hashes.get(name), 'no such file')}, expected "
                f"{_said(wanted, 'it in the manifest')}. Use another version, or restore this one."
            )


def _said(file: FileHash | None, missing: str) -> str:
    return missing if file is None else f"{file.size:,} bytes of sha256 {file.sha256[:12]}…"
