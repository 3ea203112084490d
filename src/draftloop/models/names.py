"""Give each model one name in a data directory, for ever, and keep the chat template it collected with. No mlx.

Records, versions, verdicts, epochs, runs and the audit name a model by a string, and compare these strings. The string
is the model's fingerprint. A data directory that draftloop 0.1 began has its former fingerprint everywhere instead, and
goes on with that one: so nothing is written anew, and nothing is compared in two ways. The former fingerprint changes
with the chat template; `models.json` therefore keeps which model it was, from the first time that they are seen to be
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

from ..store.files import FILES, Files
from ..store.lock import Lock
from ..store.sealed import read_sealed, write_sealed
from .draft_vocabulary import DraftVocabularyFile
from .fingerprints import Fingerprints
from .self_layers import SelfLayersFile

SCHEMA = 1
FILE = "models.json"
_NAMING = (  # what says under which name a model is known here
    *("adapters/v*/manifest.json", "adapters/pruned/v*.json", "failures/failures.jsonl"),
    *("replay/replay.jsonl", "runs/audit.jsonl"),
)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the file holds.

    Attributes:
        names: of models, by fingerprint.
        templates: fingerprint of the chat template that a target was last collected with, by its name; None is none.
    """

    names: dict[str, str] = field(default_factory=dict)
    templates: dict[str, str | None] = field(default_factory=dict)
    schema: Literal[1] = 1
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


_KNOWN = TypeAdapter(_Known)


class ModelNames:
    """The names of one data directory. Making one touches nothing.

    Args:
        root: the data directory.
        files: the seam for the operations that change something.

    Attributes:
        self_layers: of how many layers a draft that is cut from a target is made here.
        vocabularies: which tokens each draft may propose here.
    """

    def __init__(self, root: Path, files: Files = FILES) -> None:
        self._root, self._path, self._files = root, root / FILE, files
        self._lock = Lock(root / ".models.lock", files=files)
        self.self_layers = SelfLayersFile(root, files)
        self.vocabularies = DraftVocabularyFile(root, files)

    def of(self, model: Fingerprints) -> str:
        """The name of a model in this data directory. Changes nothing.

        Raises:
            StoreError: `models.json` is damaged, or a newer draftloop wrote it.
        """
        names = self._read().names
        if model.model in names:
            return names[model.model]
        is_own = _has_own_former(model, names)
        return model.former if is_own and self._mentions(model.former) else model.model

    def all_of(self, model: Fingerprints) -> frozenset[str]:
        """All names by which something from elsewhere may mean a model. Raises StoreError as `of`."""
        former = [model.former] if _has_own_former(model, self._read().names) else []
        return frozenset([self.of(model), model.model, *former])

    def keep(self, *models: Fingerprints) -> None:
        """Keep the names of models, whatever becomes of their templates; nothing to do in an empty data directory.

        Raises:
            StoreError: as `of`, or the disk refused.
        """
        if self.has_records() and not {one.model for one in models} <= self._read().names.keys():
            with self._lock:
                known, current = self._read(), {one.model: self.of(one) for one in models}
                # A former fingerprint that fits proves that the template is still the one of that time.
                proven = {one.former: one.template for one in models if current[one.model] == one.former}
                self._write(replace(known, names=current | known.names, templates=proven | known.templates))

    def changed_template(self, target: Fingerprints) -> str | None:
        """A sentence where a target's chat template is another one than it was last collected with; else None.

        Raises:
            StoreError: as `of`.
        """
        templates, name = self._read().templates, self.of(target)
        if name not in templates or templates[name] == target.template:
            return None
        before, now = (template[:12] if template else "none" for template in (templates[name], target.template))
        return (
            f"the target's chat template changed since prompts were last collected ({before} -> {now}): a prompt that "
            "it writes otherwise now is collected anew; what was logged before holds token ids and stays in use"
        )

    def keep_template(self, target: Fingerprints) -> None:
        """Remember which chat template a target was collected with. Raises StoreError as `keep`."""
        name = self.of(target)
        if self._read().templates.get(name, "") != target.template:
            with self._lock:
                known = self._read()
                self._write(replace(known, templates=known.templates | {name: target.template}))

    def has_records(self) -> bool:
        """Whether something here names a model, so that what is known of models is kept."""
        return any(True for _ in self._naming())

    def _mentions(self, name: str) -> bool:
        """Whether something here is of a model of that name."""
        wanted = name.encode()
        for path in self._naming():
            with path.open("rb") as file:
                if any(wanted in line for line in file):
                    return True
        return False

    def _naming(self) -> list[Path]:
        return [path for pattern in _NAMING for path in sorted(self._root.glob(pattern))]

    def _read(self) -> _Known:
        known = read_sealed(
            self._path,
            _KNOWN,
            SCHEMA,
            "Restore it, or delete it: a model that draftloop 0.1 collected with is then recognised only if its chat "
            "template is still the one of that time.",
        )
        return _Known() if known is None else known

    def _write(self, known: _Known) -> None:
        write_sealed(self._path, known, self._files)


def _has_own_former(model: Fingerprints, names: Mapping[str, str]) -> bool:
    """Whether no other model goes by its former fingerprint, which models of different fingerprints may share."""
    return all(other == model.model for other, name in names.items() if name == model.former)
