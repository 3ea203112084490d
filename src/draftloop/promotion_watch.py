"""Where the looks at promoted drafts are written down, and how one begins. Knows no model and no test.

`watching/<sequence>.json` belongs to the promotion with which the pointer reached that sequence. A look is written down
with its records before they are scored, so that a crash gives nobody a second look for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import orjson
from pydantic import TypeAdapter, ValidationError

from .drift import Generation
from .errors import StoreError
from .looks import Look, Watching
from .marks import mark_of
from .records import RecordError, dump, seal, unseal
from .registry import Pointer
from .store.atomic import write_atomically
from .store.files import FILES, Files, storing
from .units import large_sources

FOLDER = "watching"
_WATCHING = TypeAdapter(Watching)


class PromotionWatch:
    """The looks under `root`, the registry's directory. Making one touches nothing; one process at a time writes.

    Args:
        root: `<data>/adapters`.
        files: the seam for the operations that change something.
    """

    def __init__(self, root: Path, files: Files = FILES) -> None:
        self.root = root
        self._files = files

    def of(self, pointer: Pointer) -> Watching | None:
        """What is known of the promotion that the pointer stands at; None where nothing was begun.

        Raises:
            StoreError: it is damaged.
        """
        path = self._path(pointer.sequence)
        try:
            return _WATCHING.validate_python(orjson.loads(unseal(path.read_bytes())))
        except FileNotFoundError:
            return None
        except (RecordError, ValidationError, ValueError) as error:
            raise StoreError(
                f"{path} is damaged: {error}. Delete it: the looks at {pointer.champion} then begin anew."
            ) from None

    def begin(self, pointer: Pointer, stream: Sequence[Generation], least: int) -> Watching | None:
        """Fix the units and the end of the log for the champion that the pointer names, once.

        Args:
            pointer: after it moved.
            stream: all generations of the target so far, in the order of the log.
            least: prompt groups that make a source a unit, and that the first look needs.

        Returns:
            What was fixed, now or before; None for the bare draft, which is not looked at.

        Raises:
            StoreError: the disk refused, or what is there is damaged.
        """
        if pointer.champion is None:
            return None
        found = self.of(pointer)
        if found is None:
            found = watching_from(pointer, pointer.champion, stream, least)
            self._write(found)
        return found

    def begin_anew(self, watching: Watching, stream: Sequence[Generation]) -> Watching:
        """New is what comes from now on; what was spent stays spent."""
        return self._write(replace(watching, mark=mark_of([one.id for one in stream])))

    def note_begun(self, watching: Watching, look: Look) -> Watching:
        """Write down that a look is about to be made; one that was begun before is not written twice."""
        if look in watching.made:
            return watching
        return self._write(replace(watching, made=(*watching.made, look)))

    def note_done(self, watching: Watching, look: Look, p_value: float) -> Watching:
        """Write down what a look found; which records it read is not needed any more."""
        done = replace(look, p_value=p_value, record_ids=())
        return self._write(replace(watching, made=tuple(done if one == look else one for one in watching.made)))

    def _path(self, sequence: int) -> Path:
        return self.root / FOLDER / f"{sequence}.json"

    def _write(self, watching: Watching) -> Watching:
        path = self._path(watching.sequence)
        with storing(path):
            self._files.make_directory(path.parent)
            write_atomically(path, seal(dump(watching)), self._files, full=True)
        return watching


def watching_from(pointer: Pointer, champion: str, stream: Sequence[Generation], least: int) -> Watching:
    """How a watch over the champion of a pointer begins, after the generations of `stream`. Args as `begin`."""
    members = ((one.group, one.key.source) for one in stream if one.split == "heldout")
    return Watching(
        sequence=pointer.sequence,
        champion=champion,
        previous=pointer.previous,
        sources=large_sources(members, least),
        mark=mark_of([one.id for one in stream]),
        least=least,
    )
