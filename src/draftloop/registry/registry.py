"""The versions of the draft's adapter, and the pointer to the champion, which moves in `Registry._move` alone.

A version is a directory `vNNNN` that is renamed into place whole and never changed. `pointer.json` names champion and
previous in one file, so that they move together. `audit.jsonl` gets its line before the pointer moves, so that no
promotion goes unrecorded; of two lines with one `pointer`, a crash cut off the first. Where the weights of a version
were pruned, its manifest stays in `pruned/`: it says which records the version learned from.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import orjson
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import AccessDenied, AdapterDamaged, AdapterError, ChampionMoved, StoreError
from ..models.adapter_format import CONFIG, WEIGHTS
from ..models.manifest import (
    MANIFEST,
    Manifest,
    hash_files,
    make_manifest,
    read_manifest_file,
    verify_adapter,
)
from ..store.atomic import publish_directory, remove_leftovers, temporary_path, write_atomically
from ..store.files import FILES, Files, reading, storing
from ..store.journal import Journal
from ..store.lock import Lock
from ..store.sealed_lines import dump, seal

POINTER = "pointer.json"
AUDIT = "audit.jsonl"
PRUNED = "pruned"

_VERSION_NAME = re.compile(r"v[0-9]{4,}")
_MAX_REFERENCE = 4096
_MAX_NAME_BYTES = 255
_CLOSED = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Version:
    """A finished version: where it lies and what its manifest says."""

    name: str
    path: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Pointer:
    """Which version is in use, which was before, and how often the pointer moved (`sequence`)."""

    champion: str | None = None
    previous: str | None = None
    sequence: Annotated[int, Field(strict=True, ge=0)] = 0
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


_POINTER = TypeAdapter(Pointer)


class RegistryFiles:
    """Files in the registry's directory. Making one touches nothing.

    Args:
        root: `<data>/adapters`, made at the first writing.
        files: the seam for the operations that change something.
    """

    def __init__(self, root: Path, files: Files = FILES) -> None:
        self.root = root
        self._files = files


class Registry(RegistryFiles):
    """The versions, and the pointer to the champion."""

    def __init__(self, root: Path, files: Files = FILES) -> None:
        super().__init__(root, files)
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
            make_manifest(manifest, name, {})  # a field that cannot be kept is refused before the work, not after it
            temporary = temporary_path(self.root)
            self._files.make_directory(temporary)
            try:
                write(temporary)
                verify_adapter(temporary)
                made = make_manifest(manifest, name, hash_files(temporary))
                write_atomically(temporary / MANIFEST, seal(dump(made)), self._files)
                publish_directory(temporary, self.root / name, self._files, full=True)
            except BaseException:
                with suppress(OSError):  # failing that, the next create removes it
                    self._files.remove(temporary)
                raise
        return Version(name, self.root / name, made)

    def versions(self) -> list[str]:
        """The names of the finished versions, oldest first."""
        try:
            with reading(self.root):
                entries = [entry for entry in self.root.iterdir() if _is_version_name(entry.name)]
                names = [entry.name for entry in entries if entry.is_dir() and not entry.is_symlink()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(names, key=_number)

    def pruned(self) -> list[str]:
        """The names of the versions whose weights were deleted, oldest first."""
        names = (path.stem for path in (self.root / PRUNED).glob("v*.json"))
        return sorted((name for name in names if _is_version_name(name)), key=_number)

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
            with reading(path):
                return _POINTER.validate_python(orjson.loads(path.read_bytes()))
        except FileNotFoundError:
            # The file was deleted, or never written. Numbers go on after the audit's last one, so that none is given
            # twice. A line 1 alone may be of a first move that a crash cut off: that one keeps its number.
            moves = max(self._moves(), default=0)
            return Pointer(sequence=moves if moves > 1 else 0)
        except (orjson.JSONDecodeError, ValidationError):
            raise StoreError(
                f"{path} is damaged: expected champion, previous and sequence. Delete it and promote a version again: "
                f"{self._what_exists()}; {AUDIT} beside it tells which was the champion."
            ) from None

    def promote(self, name: str | None, why: str = "by hand", expected: int | None = None) -> Pointer:
        """Make `name` the champion and the champion `previous`, after proving that `name` is whole. Idempotent.

        Args:
            name: a version; None is the bare draft. The audit has that as a rollback, so the champion counts as rolled
                back (`rolled_back`), and `retrain` discards what is trained on top of it.
            why: for the audit.
            expected: the pointer's sequence that the decision rests on; None promotes at any.

        Raises:
            AdapterError: there is no such version, or it is damaged; the pointer did not move.
            ChampionMoved: somebody moved the pointer since it was at `expected`.
            StoreError: the disk refused, and the pointer is the old one or, if only the last sync failed, the new one.
        """
        if name is not None:
            self._version_path(name)  # the lock would make a directory for a version that is not there
        elif not self.root.exists():
            return self._pointer_at(expected)
        with self._lock, storing(self.root / POINTER):
            if name is not None:
                self.verify(self._version_path(name))
            now = self._pointer_at(expected)
            if now.champion == name:
                return now
            what = "rollback" if name is None else "promote"
            return self._move(Pointer(name, now.champion, now.sequence + 1), what, why)

    def rollback(self, why: str = "by hand", expected: int | None = None) -> Pointer:
        """Swap champion and previous, after proving that the previous one is whole; a second call undoes it.

        Before the first promotion the bare draft was in use, so the first champion is rolled back to that.

        Args and errors as `promote`; AdapterError too where nothing was ever promoted.
        """
        nothing = AdapterError("nothing was ever promoted, so there is nothing to go back to")
        if not self.root.exists():
            raise nothing  # before a lock makes the directory
        with self._lock, storing(self.root / POINTER):
            now = self._pointer_at(expected)
            if now.champion is None and now.previous is None:
                raise nothing
            if now.previous is not None:
                self.verify(self._version_path(now.previous))
            return self._move(Pointer(now.previous, now.champion, now.sequence + 1), "rollback", why)

    def expect(self, sequence: int) -> None:
        """Raise ChampionMoved unless the pointer still has the sequence that a decision rests on."""
        self._pointer_at(sequence)

    def rolled_back(self) -> set[str]:
        """The versions that a rollback took out of use and no later move brought back."""
        moves, last, rolled_back = self._moves(), self.pointer().sequence, set[str]()
        for number in sorted(number for number in moves if number <= last):
            move = moves[number]
            rolled_back.discard(move["champion"])
            if move["what"] == "rollback" and move["previous"] is not None:
                rolled_back.add(move["previous"])
        return rolled_back

    def prune(self, keep: int, protected: Collection[str] = ()) -> list[str]:
        """Delete the weights of old versions; their manifests stay. Returns the names of the deleted.

        Args:
            keep: how many of the newest versions stay. Champion and previous stay too, and every version whose
                manifest is damaged, because nothing else says what it learned from.
            protected: names that stay whatever their age.

        Raises:
            StoreError: the disk refused; each version is there whole or gone.
        """
        if not self.root.exists():
            return []
        with self._lock, storing(self.root):
            remove_leftovers(self.root, self._files)
            removed = self.prunable(keep, protected)
            for name in removed:  # the manifest is safe in `pruned/` before the directory goes, in one step
                path, manifest = self._version_path(name), self.manifest(name)
                self._files.make_directory(self.root / PRUNED)
                write_atomically(self.root / PRUNED / f"{name}.json", seal(dump(manifest)), self._files, full=True)
                doomed = temporary_path(self.root)
                self._files.rename(path, doomed)
                self._files.sync_directory(self.root)
                self._files.remove(doomed)
        return removed

    def prunable(self, keep: int, protected: Collection[str] = ()) -> list[str]:
        """What `prune` would delete."""
        now = self.pointer()
        staying = {now.champion, now.previous, *protected, *self.versions()[-keep:]}
        return [name for name in self.versions() if name not in staying and self._is_readable(name)]

    def resolve(self, reference: str) -> Path | None:
        """The directory that `none`, `champion`, `latest`, `vNNNN` or a path means; None for the bare draft.

        Raises:
            AdapterError: it is not there, or is no adapter directory.
            AdapterDamaged: the champion is not whole; the message says how to get out of that.
        """
        _check_reference(reference)
        if reference == "none":
            return None
        if reference == "champion":
            return self._whole_champion()
        if reference == "latest" or _is_version_name(reference):
            return self._version_path((self.latest() or "latest") if reference == "latest" else reference)
        path = Path(reference)
        if not path.is_dir():
            raise AdapterError(
                f"{path} is neither none, champion, latest, a version, nor a directory. {self._what_exists()}."
            )
        self._refuse_symlink(path)
        for name in (WEIGHTS, CONFIG):
            if not (path / name).is_file():
                raise AdapterError(f"{path} is no adapter directory: it lacks {name}. Expected {WEIGHTS} and {CONFIG}.")
        return path

    def name_of(self, path: Path) -> str:
        """The name of the adapter at `path` in reports and records: its version, or its absolute path."""
        return path.name if path.parent == self.root else str(path.absolute())

    def verify(self, path: Path) -> Manifest | None:
        """As `verify_adapter`; a version of this registry must also be a real directory with a manifest."""
        self._refuse_symlink(path)
        manifest = verify_adapter(path)
        if manifest is None and self._is_inside(path):
            raise AdapterError(f"{path / MANIFEST} is missing: this is no finished version. {self._what_exists()}.")
        return manifest

    def manifest(self, name: str) -> Manifest:
        """What a version's manifest says, a pruned one's too; its files are not read.

        Raises:
            AdapterError: no such version, or its manifest is missing or damaged.
            StoreError: a newer draftloop wrote the manifest.
        """
        is_pruned = name in self.pruned() and not (self.root / name).exists()
        path = self.root / PRUNED / f"{name}.json" if is_pruned else self._version_path(name) / MANIFEST
        manifest = read_manifest_file(path)
        if manifest is None:
            raise AdapterError(f"{path} is missing: this is no finished version.")
        return manifest

    def _whole_champion(self) -> Path | None:
        name = self.champion()
        if name is None:
            return None
        try:
            self.verify(self._version_path(name))
        except AdapterError as error:
            raise AdapterDamaged(
                f"the champion is not whole: {error} `adapters rollback` goes back to the previous draft, and "
                "`adapters promote` to any other version, or with none to the bare draft"
            ) from None
        return self.root / name

    def _version_path(self, name: str) -> Path:
        _check_reference(name)
        path = self.root / name
        if name in self.pruned() and not path.exists():
            raise AdapterError(f"The weights of {name} were deleted as old ones. {self._what_exists()}.")
        if not _is_version_name(name) or not path.is_dir():
            raise AdapterError(f"No adapter {name} in {self.root}. {self._what_exists()}.")
        self._refuse_symlink(path)
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
        names += [path.stem for path in self.root.glob("*/v*.json")]  # of the pruned, and what else goes by a name
        return f"v{max((_number(name) for name in names if _is_version_name(name)), default=0) + 1:04d}"

    def _pointer_at(self, expected: int | None) -> Pointer:
        now = self.pointer()
        if expected is not None and now.sequence != expected:
            raise ChampionMoved(
                f"the champion is {now.champion or 'the bare draft'} now, by move {now.sequence} of the pointer; "
                f"this was decided at move {expected}"
            )
        return now

    def _move(self, new: Pointer, what: str, why: str) -> Pointer:
        """Move the pointer, after its line is in the audit: every promotion and rollback comes here."""
        said = {"champion": new.champion, "previous": new.previous, "pointer": new.sequence}
        Journal(self.root / AUDIT, self._files).append({"what": what, "when": time.time(), "why": why, **said})
        write_atomically(self.root / POINTER, dump(new) + b"\n", self._files, full=True)
        return new

    def _moves(self) -> dict[int, dict[str, Any]]:
        """The audit's lines by the pointer's sequence; of two with one number the first was cut off."""
        return {int(line["pointer"]): line for line in Journal(self.root / AUDIT, self._files).entries()}

    def _is_readable(self, name: str) -> bool:
        try:
            self.manifest(name)
        except (AdapterError, AccessDenied):
            return False
        return True


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
