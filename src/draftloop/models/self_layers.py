"""Of how many of the target's layers a self-draft is made in a data directory, for each target, and why. No mlx.

Another number is another draft, with versions and verdicts of its own. So the number is settled once, before the first
training, and kept; until then every command takes the same one, which is a rule's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

from ..store.files import FILES, Files
from ..store.lock import Lock
from ..store.sealed import read_sealed, write_sealed

SCHEMA = 1
FILE = "self_draft.json"


@dataclass(frozen=True, slots=True)
class LayersTrial:
    """What a quick training with so many layers gave.

    Attributes:
        layers: N.
        t_draft: seconds of a draft step.
        acceptance: per position on the generations that nothing was trained on.
        num_draft_tokens: the K with the highest forecast, at least 1.
        forecast: speed-up at that K over decoding without a draft.
        vocabulary: how many tokens it could propose, as many as paid most; None where only all were tried.
    """

    layers: int
    t_draft: float
    acceptance: float
    num_draft_tokens: int
    forecast: float
    vocabulary: int | None = None


@dataclass(frozen=True, slots=True)
class SelfLayers:
    """A number of layers, and whence it comes.

    Attributes:
        layers: N.
        is_settled: by measurement; else by the rule for a start.
        why: one sentence.
        trials: what was measured, by N.
    """

    layers: int
    is_settled: bool
    why: str
    trials: tuple[LayersTrial, ...] = ()


@dataclass(frozen=True, slots=True)
class _Kept:
    by_target: dict[str, SelfLayers] = field(default_factory=dict)
    schema: Literal[1] = 1
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


_KEPT = TypeAdapter(_Kept)


class SelfLayersFile:
    """The numbers of one data directory. Making one touches nothing.

    Args:
        root: the data directory.
        files: the seam for the operations that change something.
    """

    def __init__(self, root: Path, files: Files = FILES) -> None:
        self._path, self._files = root / FILE, files
        self._lock = Lock(root / ".self_draft.lock", files=files)

    def of(self, target: str) -> SelfLayers | None:
        """What is kept for the target of that name. Raises StoreError: damaged, or a newer draftloop wrote it."""
        return self._read().by_target.get(target)

    def keep(self, target: str, layers: SelfLayers) -> None:
        """Keep a number; a settled one stays as it is. Raises StoreError: as `of`, or the disk refused."""
        if self._changes(target, layers):
            with self._lock:
                if self._changes(target, layers):  # another process may have settled it just now
                    write_sealed(self._path, _Kept({**self._read().by_target, target: layers}), self._files)

    def _changes(self, target: str, layers: SelfLayers) -> bool:
        before = self.of(target)
        return before is None or (before != layers and not before.is_settled)

    def _read(self) -> _Kept:
        remedy = "Restore it, or delete it: the number of layers is then chosen anew, and another one is another draft."
        return read_sealed(self._path, _KEPT, SCHEMA, remedy) or _Kept()
