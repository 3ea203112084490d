"""The file that keeps the looks at a promoted draft, so that a crash gives no second look. Knows no model and no test.

`watching/<sequence>.json` belongs to the promotion with which the pointer reached that sequence. A look is written with
its records before they are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from .. import config
from ..data.log_position import mark_of
from ..registry.registry import Pointer, RegistryFiles
from ..store.sealed import read_sealed, write_sealed
from .drift import LoggedGeneration
from .looks import Look, Watching
from .units_and_levels import large_sources

SCHEMA = 1
FOLDER = "watching"
_WATCHING = TypeAdapter(Watching)


class PromotionWatch(RegistryFiles):
    """The looks at promoted drafts; one process at a time writes."""

    def of(self, pointer: Pointer) -> Watching | None:
        """What is known of the promotion that the pointer stands at; None where nothing was begun.

        Raises:
            StoreError: it is damaged, this user may not read it, or a newer draftloop wrote it.
        """
        remedy = f"Delete it: the looks at {pointer.champion} then begin anew."
        return read_sealed(self._path(pointer.sequence), _WATCHING, SCHEMA, remedy)

    def begin(self, pointer: Pointer, stream: Sequence[LoggedGeneration], settings: config.Gate) -> Watching | None:
        """Fix the units and the end of the log for the champion that the pointer names, once.

        Args:
            pointer: after it moved.
            stream: all generations of the target so far, in the order of the log.
            settings: from which the watch keeps the least prompt groups, the number of looks and their level.

        Returns:
            What was fixed, now or before; None for the bare draft, which is not looked at.

        Raises:
            StoreError: the disk refused, or what is there is damaged.
        """
        if pointer.champion is None:
            return None
        return self.of(pointer) or self._write(watching_from(pointer, pointer.champion, stream, settings))

    def begin_anew(self, watching: Watching, stream: Sequence[LoggedGeneration]) -> Watching:
        """Move the mark to the end of the log: outputs after it are new. The looks that were made still count."""
        return self._write(replace(watching, mark=mark_of([one.id for one in stream])))

    def note_begun(self, watching: Watching, look: Look) -> Watching:
        """Write down that a look is about to be made; one that was begun before is not written twice."""
        if look in watching.made:
            return watching
        return self._write(replace(watching, made=(*watching.made, look)))

    def note_done(self, watching: Watching, look: Look, p_value: float) -> Watching:
        """Write down the p of a look; the ids of its records are not needed any more."""
        done = replace(look, p_value=p_value, record_ids=())
        return self._write(replace(watching, made=tuple(done if one == look else one for one in watching.made)))

    def _path(self, sequence: int) -> Path:
        return self.root / FOLDER / f"{sequence}.json"

    def _write(self, watching: Watching) -> Watching:
        write_sealed(self._path(watching.sequence), watching, self._files)
        return watching


def watching_from(
    pointer: Pointer, champion: str, stream: Sequence[LoggedGeneration], settings: config.Gate
) -> Watching:
    """A new watch over the champion of a pointer, after the generations of `stream`. Args as `begin`."""
    members = ((one.group, one.key.source) for one in stream if one.split == "heldout")
    return Watching(
        sequence=pointer.sequence,
        champion=champion,
        previous=pointer.previous,
        sources=large_sources(members, settings.min_heldout_prompts),
        mark=mark_of([one.id for one in stream]),
        least=settings.min_heldout_prompts,
        looks=settings.looks,
        alpha=settings.rollback_alpha,
    )
