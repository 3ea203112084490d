"""The versions of the draft's adapter, and which of them is the champion. Knows no model and no verdict.

A version is a directory `vNNNN` that is renamed into place whole and never changed. `pointer.json` names champion and
previous in one file, so that they move together. `audit.jsonl` gets its line before the pointer moves: no promotion
goes unrecorded, and a line whose sequence the next one repeats is one that a crash cut off before it happened.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from .adapter_format import CONFIG, WEIGHTS, read_config, read_shapes
from .errors import AdapterError, StoreError
from .records import PairId, RecordError, check_schema, dump, seal, unseal
from .store.atomic import publish_directory, remove_leftovers, temporary_path, write_atomically
from .store.files import FILES, Files, storing
from .store.lock import Lock

SCHEMA = 1
MANIFEST = "manifest.json"
POINTER = "pointer.json"
AUDIT = "audit.jsonl"

_VERSION_NAME = re.compile(r"v[0-9]{4,}")
_MAX_REFERENCE = 4096
_MAX_NAME_BYTES = 255
_CLOSED = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class FileHash:
    """What a file of a version must be: its size in bytes and its sha256 in hex."""

    size: Annotated[int, Field(strict=True, ge=0)]
    sha256: str
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a version is made of and came from.

    Attributes:
        name: the version's own name; files: every file but the manifest, by its path inside the directory.
        created: unix seconds.
        parent: the version it was trained from, None when it started from the bare draft.
        record_ids: the records it was trained on.
    """

    name: str
    files: dict[str, FileHash]
    created: float
    parent: str | None = None
    pair: PairId | None = None
    record_ids: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    draftloop_version: str | None = None
    schema: Literal[1] = 1
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True)
class Version:
    """A finished version: where it lies and what its manifest says."""

    name: str
    path: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Pointer:
    """Which version is in use, which was before, and how many promotions there were."""

    champion: str | None = None
    previous: str | None = None
    sequence: Annotated[int, Field(strict=True, ge=0)] = 0
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


_MANIFEST = TypeAdapter(Manifest)
_POINTER = TypeAdapter(Pointer)


class Registry:
    """The adapters under `root` (`<data>/adapters`). Making one touches nothing.

    Args:
        root: the directory of the versions, made at the first `create`.
        files: the seam for the operations that change something.
    """

    def __init__(self, root: Path, files: Files = FILES) -> None:
        self.root = root
        self._files = files
        self._lock = Lock(root / ".lock", files=files)

    def create(self, write: Callable[[Path], None], manifest: dict[str, Any]) -> Version:
        """Publish what `write(directory)` leaves in an empty directory as the next version.

        Args:
            write: puts `adapters.safetensors`, `adapter_config.json` and whatever else belongs to it there.
            manifest: fields of `Manifest`; `name`, `files` and `schema` are filled in here, `created` if not given.

        Raises:
            AdapterError: `write` left no loadable adapter.
            StoreError: a manifest field cannot be kept, or the disk refused; no version was made.
        """
        with self._lock, storing(self.root):
            remove_leftovers(self.root, self._files)
            name = self._next_name()
            _manifest(manifest, name, {})  # a field that cannot be kept is refused before the work, not after it
            temporary = temporary_path(self.root)
            self._files.make_directory(temporary)
            try:
                write(temporary)
                verify(temporary)
                made = _manifest(manifest, name, _hash_files(temporary))
                write_atomically(temporary / MANIFEST, seal(dump(made)), self._files)
                publish_directory(temporary, self.root / name, self._files)
            except BaseException:
                with suppress(OSError):  # failing that, the next create removes it
                    self._files.remove(temporary)
                raise
        return Version(name, self.root / name, made)

    def versions(self) -> list[str]:
        """The names of the finished versions, oldest first."""
        entries = self.root.iterdir() if self.root.is_dir() else iter(())
        names = (e.name for e in entries if _is_version_name(e.name) and e.is_dir() and not e.is_symlink())
        return sorted(names, key=_number)

    def latest(self) -> str | None:
        """The newest version, with or without a verdict; None when there is none."""
        return next(reversed(self.versions()), None)

    def champion(self) -> str | None:
        """The version in use; None for the bare draft."""
        return self.pointer().champion

    def previous(self) -> str | None:
        """The champion before this one; None when there was none."""
        return self.pointer().previous

    def pointer(self) -> Pointer:
        """Champion and previous, read at one instant.

        Raises:
            StoreError: `pointer.json` is damaged.
        """
        path = self.root / POINTER
        try:
            return _POINTER.validate_python(orjson.loads(path.read_bytes()))
        except FileNotFoundError:
            return Pointer()
        except (orjson.JSONDecodeError, ValidationError):
            raise StoreError(
                f"{path} is damaged: expected champion, previous and sequence. Delete it and promote a version again: "
                f"{self._what_exists()}; {AUDIT} beside it tells which was the champion."
            ) from None

    def promote(self, name: str, why: str = "by hand") -> Pointer:
        """Make `name` the champion and the champion `previous`, after proving that it is whole. Twice is once.

        Raises:
            AdapterError: there is no such version, or it is damaged; the pointer did not move.
            StoreError: the disk refused, and the pointer is the old one or, if only the last sync failed, the new one.
        """
        with self._lock, storing(self.root / POINTER):
            self.verify(self._version_path(name))
            now = self.pointer()
            if now.champion == name:
                return now
            new = Pointer(name, now.champion, now.sequence + 1)
            self._audit({"what": "promote", "when": time.time(), "why": why, **asdict(new)})
            write_atomically(self.root / POINTER, dump(new) + b"\n", self._files)
        return new

    def resolve(self, reference: str) -> Path | None:
        """The directory that `none`, `champion`, `latest`, `vNNNN` or a path means; None for the bare draft.

        Raises:
            AdapterError: it is not there, or is no adapter directory.
        """
        _check_reference(reference)
        if reference == "none":
            return None
        if reference == "champion":
            champion = self.champion()
            return self._version_path(champion) if champion else None
        if reference == "latest":
            return self._version_path(self.latest() or "latest")
        if _is_version_name(reference):
            return self._version_path(reference)
        return self._directory(Path(reference))

    def verify(self, path: Path) -> Manifest | None:
        """`verify`, and for a version of this registry that it is a real directory with a manifest."""
        self._refuse_symlink(path)
        manifest = verify(path)
        if manifest is None and self._is_inside(path):
            raise AdapterError(f"{path / MANIFEST} is missing: this is no finished version. {self._what_exists()}.")
        return manifest

    def manifest(self, name: str) -> Manifest:
        """What a version's manifest says; its files are not read.

        Raises:
            AdapterError: no such version, or its manifest is missing or damaged.
            StoreError: a newer draftloop wrote the manifest.
        """
        found = _read_manifest(self._version_path(name))
        if found is None:
            raise AdapterError(f"{self.root / name / MANIFEST} is missing: this is no finished version.")
        return found

    def _version_path(self, name: str) -> Path:
        _check_reference(name)
        path = self.root / name
        if not _is_version_name(name) or not path.is_dir():
            raise AdapterError(f"No adapter {name} in {self.root}. {self._what_exists()}.")
        self._refuse_symlink(path)
        return path

    def _directory(self, path: Path) -> Path:
        if not path.is_dir():
            raise AdapterError(
                f"{path} is neither none, champion, latest, a version, nor a directory. {self._what_exists()}."
            )
        self._refuse_symlink(path)
        for name in (WEIGHTS, CONFIG):
            if not (path / name).is_file():
                raise AdapterError(f"{path} is no adapter directory: it lacks {name}. Expected {WEIGHTS} and {CONFIG}.")
        return path

    def _refuse_symlink(self, path: Path) -> None:
        if path.is_symlink() and self._is_inside(path):
            raise AdapterError(f"{path} is a symbolic link; expected a real directory. Name its target instead.")

    def _is_inside(self, path: Path) -> bool:
        return path.absolute().parent.resolve() == self.root.resolve()

    def _what_exists(self) -> str:
        versions = self.versions()
        if not versions:
            return "No version exists yet: `draftloop train` makes one"
        return f"Existing versions: {', '.join(versions)}"

    def _next_name(self) -> str:
        """One past every number ever used that is still known of, so that no name is given twice."""
        pointer = self.pointer()
        names = [entry.name for entry in self.root.iterdir()] + [pointer.champion or "", pointer.previous or ""]
        return f"v{max((_number(name) for name in names if _is_version_name(name)), default=0) + 1:04d}"

    def _audit(self, entry: dict[str, Any]) -> None:
        path = self.root / AUDIT
        descriptor = self._files.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            self._files.write_all(descriptor, (b"\n" if torn else b"") + dump(entry) + b"\n")
            self._files.sync(descriptor)
        finally:
            os.close(descriptor)


def verify(path: Path) -> Manifest | None:
    """Prove that an adapter directory is what its manifest says, and that config and weights' header are readable.

    Returns:
        The manifest; None for a directory from elsewhere that has none, of which no hash could be checked.

    Raises:
        AdapterError: a file is missing or damaged; it is named.
        StoreError: a newer draftloop wrote the manifest.
    """
    manifest = _read_manifest(path)
    if manifest is not None:
        _check_hashes(path, manifest)
    read_config(path)
    read_shapes(path)
    return manifest


def _is_version_name(name: str) -> bool:
    return _VERSION_NAME.fullmatch(name) is not None


def _number(name: str) -> int:
    return int(name[1:])


def _check_reference(reference: str) -> None:
    """Refuse what no file system takes, before asking it."""
    try:
        raw = os.fsencode(reference)
    except UnicodeEncodeError:
        raw = b""
    too_long = len(raw) > _MAX_REFERENCE or any(len(part) > _MAX_NAME_BYTES for part in raw.split(b"/"))
    if not raw or b"\0" in raw or too_long:
        raise AdapterError(
            f"{reference[:80]!r} cannot name an adapter. Expected none, champion, latest, a version such as v0001, "
            "or the path of an adapter directory."
        )


def _manifest(given: dict[str, Any], name: str, hashes: dict[str, FileHash]) -> Manifest:
    """The manifest of `given` fields, as it will read back."""
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


def _read_manifest(path: Path) -> Manifest | None:
    try:
        values = orjson.loads(unseal((path / MANIFEST).read_bytes()))
        check_schema(values.get("schema"), SCHEMA, "manifest")
        return _MANIFEST.validate_python(values)
    except FileNotFoundError:
        return None
    except (RecordError, ValueError, OSError) as error:
        raise AdapterError(f"{path / MANIFEST} is damaged: {error}. Take the adapter from its source again.") from None


def _hash_files(directory: Path) -> dict[str, FileHash]:
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)
    return {path.relative_to(directory).as_posix(): _hash(path) for path in paths}


def _hash(path: Path) -> FileHash:
    with path.open("rb") as file:
        return FileHash(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _check_hashes(path: Path, manifest: Manifest) -> None:
    try:
        found = _hash_files(path)
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error}") from None
    for name in sorted({WEIGHTS, CONFIG} | manifest.files.keys()):
        if name not in manifest.files or found.get(name) != manifest.files[name]:
            raise AdapterError(
                f"{path / name} is damaged: found {found.get(name, 'no such file')}, expected "
                f"{manifest.files.get(name, 'it in the manifest')}. Use another version, or restore this one."
            )
