"""What the gate said of each version, and the held-out epochs it said it in. Knows no model and no test.

`verdicts/vNNNN.json` is the verdict of a version. `epoch.json` is the epoch in work: the held-out records it is scored
on, fixed at its first attempt, and the attempts made. An attempt is written down before it is scored, so that a crash
gives nobody a second look for nothing: the same candidate against the same champion is the same attempt again, and
everything else is the next one, at a smaller share of alpha.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import orjson
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from .errors import StoreError
from .records import PairId, RecordError, check_schema, dump, seal, unseal
from .store.atomic import write_atomically
from .store.files import FILES, Files, storing

SCHEMA = 1
FOLDER = "verdicts"
EPOCH = "epoch.json"
_CLOSED = ConfigDict(extra="forbid")

Outcome = Literal["promoted", "refused", "by hand"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a version.

    Attributes:
        version: its name; champion: what it was compared with, None the bare draft.
        outcome: `promoted` or `refused` by the gate; `by hand` where a person promoted it without one.
        reasons: why, a sentence each.
        epoch, attempt: which attempt of which epoch, from 1; 0 and 0 where no held-out text was scored.
        pointer: the sequence of the registry's pointer that the verdict rests on.
        when: unix seconds.
        numbers: all that was measured, with its conditions.
    """

    version: str
    champion: str | None
    outcome: Outcome
    reasons: tuple[str, ...]
    epoch: int
    attempt: int
    pointer: int
    when: float
    numbers: dict[str, Any] = field(default_factory=dict)
    schema: Literal[1] = 1
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True)
class Attempt:
    """One look at an epoch: a candidate against a champion."""

    version: str
    champion: str | None
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """Held-out records that a bounded number of candidates is scored on.

    Attributes:
        number: from 1.
        pair: whose records they are.
        record_ids: the records.
        attempts: in order; the n-th spends the n-th share of alpha.
    """

    number: Annotated[int, Field(strict=True, ge=1)]
    pair: PairId
    record_ids: tuple[str, ...]
    attempts: tuple[Attempt, ...] = ()
    schema: Literal[1] = 1
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


_Sealed = TypeVar("_Sealed", Verdict, Epoch)
_VERDICT: TypeAdapter[Verdict] = TypeAdapter(Verdict)
_EPOCH: TypeAdapter[Epoch] = TypeAdapter(Epoch)


class Verdicts:
    """The verdicts under `root`, the registry's directory. Making one touches nothing; one process at a time writes.

    Args:
        root: `<data>/adapters`.
        files: the seam for the operations that change something.
    """

    def __init__(self, root: Path, files: Files = FILES) -> None:
        self.root = root
        self._files = files

    def of(self, version: str) -> Verdict | None:
        """The verdict of a version; None for a candidate. Raises StoreError: it is damaged."""
        return self._read(self._path(version), _VERDICT, "verdict")

    def give(self, verdict: Verdict) -> None:
        """Write a verdict. Raises StoreError: the disk refused; there is none then."""
        self._write(self._path(verdict.version), verdict)

    def give_by_hand(self, version: str, champion: str | None, pointer: int, why: str) -> None:
        """Note that a person promoted a version, unless the gate has judged it. Raises StoreError as `give`."""
        if self.of(version) is None:
            self.give(
                Verdict(
                    version=version,
                    champion=champion,
                    outcome="by hand",
                    reasons=(why,),
                    epoch=0,
                    attempt=0,
                    pointer=pointer,
                    when=time.time(),
                )
            )

    def withdraw(self, version: str) -> None:
        """Make a version a candidate again. Raises StoreError: the disk refused."""
        with storing(self._path(version)):
            self._files.remove(self._path(version))

    def epoch(self) -> Epoch | None:
        """The epoch in work, or the last one; None before the first attempt. Raises StoreError: it is damaged."""
        return self._read(self.root / EPOCH, _EPOCH, "epoch")

    def open_attempt(
        self,
        attempt: Attempt,
        pair: PairId,
        max_attempts: int,
        present: Collection[str],
        draw: Callable[[int], list[str]],
    ) -> tuple[Epoch, int]:
        """Write down that a candidate is about to be scored.

        Args:
            attempt: the candidate and what it is compared with.
            pair: whose held-out records there are.
            max_attempts: scored attempts before an epoch ends.
            present: ids of the held-out records that the log has.
            draw: given the number of a new epoch, the ids of its records.

        Returns:
            The epoch, and the number of the attempt in it, from 1.

        Raises:
            StoreError: the disk refused, or what is there is damaged.
        """
        epoch = self.epoch()
        if epoch is None or self._is_over(epoch, attempt, pair, max_attempts, present):
            number = epoch.number + 1 if epoch else 1
            epoch = Epoch(number=number, pair=pair, record_ids=tuple(draw(number)))
        if attempt not in epoch.attempts:
            epoch = replace(epoch, attempts=(*epoch.attempts, attempt))
            self._write(self.root / EPOCH, epoch)
        return epoch, epoch.attempts.index(attempt) + 1

    def _is_over(
        self, epoch: Epoch, attempt: Attempt, pair: PairId, max_attempts: int, present: Collection[str]
    ) -> bool:
        """By a promotion, by its last attempt, or because its records are another pair's or were deleted."""
        if (epoch.pair.target, epoch.pair.tokenizer) != (pair.target, pair.tokenizer):
            return True
        if not set(epoch.record_ids) <= set(present):
            return True
        verdicts = (self.of(made.version) for made in epoch.attempts)
        if any(found is not None and (found.outcome, found.epoch) == ("promoted", epoch.number) for found in verdicts):
            return True
        return attempt not in epoch.attempts and len(epoch.attempts) >= max_attempts

    def _path(self, version: str) -> Path:
        return self.root / FOLDER / f"{version}.json"

    def _read(self, path: Path, kind: TypeAdapter[_Sealed], what: str) -> _Sealed | None:
        try:
            values = orjson.loads(unseal(path.read_bytes()))
            check_schema(values.get("schema"), SCHEMA, what)
            return kind.validate_python(values)
        except FileNotFoundError:
            return None
        except (RecordError, ValidationError, ValueError) as error:
            raise StoreError(
                f"{path} is damaged: {error}. Delete it: the version is then a candidate, the epoch a new one."
            ) from None

    def _write(self, path: Path, value: Verdict | Epoch) -> None:
        with storing(path):
            self._files.make_directory(path.parent)
            write_atomically(path, seal(dump(value)), self._files, full=True)
