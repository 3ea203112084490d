"""The gate's verdict on each version, and the held-out epochs that verdicts were given in. Knows no model and no test.

`verdicts/vNNNN.json` is the verdict on a version. `epochs/<pair>.json` is the current epoch of a target: the held-out
records that candidates are scored on and alpha, both fixed at its first attempt, and the attempts made. An attempt is
written down before it is scored, so that a crash gives nobody another one for free: the same weights against the same
weights are the same attempt again, and everything else is the next one, at a smaller share of alpha. Where the file of
an epoch is lost, the verdicts say how much of it was spent.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter

from .. import config
from ..data.records import PairId
from ..store.files import storing
from ..store.sealed import DamagedFile, read_sealed, write_sealed
from .registry import RegistryFiles

SCHEMA = 1
FOLDER = "verdicts"
EPOCHS = "epochs"
_CLOSED = ConfigDict(extra="forbid")

VerdictOutcome = Literal["promoted", "refused", "discarded", "by hand"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a version.

    Attributes:
        version: its name; champion: what it was compared with, None the bare draft.
        outcome: `promoted` or `refused` by the gate; `discarded` where nothing was evaluated, so that its failures
            are new again; `by hand` where a person promoted it without a verdict.
        reasons: why, a sentence each.
        epoch, attempt: which attempt of which epoch, from 1; 0 and 0 where no held-out output was scored.
        pointer: the sequence of the registry's pointer that the verdict rests on.
        when: unix seconds.
        pair: the one that the epoch belongs to; None where no held-out output was scored.
        numbers: all that was measured, with its conditions, and under `epoch` the settings that were fixed with it.
    """

    version: str
    champion: str | None
    outcome: VerdictOutcome
    reasons: tuple[str, ...]
    pointer: int
    when: float
    epoch: int
    attempt: int
    pair: PairId | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    schema: Literal[1] = 1
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True)
class Attempt:
    """One use of an epoch: a candidate against a champion. Two are equal if their files are, whatever their names.

    Attributes:
        version, champion: names; None is the bare draft.
        files, champion_files: sha256 of what is in them.
    """

    version: str = field(compare=False)
    champion: str | None = field(compare=False)
    files: str
    champion_files: str | None
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """Held-out records that a bounded number of candidates is scored on.

    Attributes:
        number: from 1.
        pair: the one that its records belong to.
        record_ids: the records.
        alpha, max_attempts, min_heldout_prompts: the settings of these names when it began.
        lost: how many attempts were made of which nothing else is known.
        attempts: in order; the n-th after the lost ones spends the (lost + n)-th share of alpha.
    """

    number: Annotated[int, Field(strict=True, ge=1)]
    pair: PairId
    record_ids: tuple[str, ...]
    alpha: float
    max_attempts: int
    min_heldout_prompts: int
    lost: int = 0
    attempts: tuple[Attempt, ...] = ()
    schema: Literal[1] = 1
    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    @property
    def fixed(self) -> dict[str, Any]:
        """The gate's settings that hold for all of it."""
        return {name: getattr(self, name) for name in _FIXED}


_FIXED = ("alpha", "max_attempts", "min_heldout_prompts")
_Kept = TypeVar("_Kept", Verdict, Epoch)
_VERDICT: TypeAdapter[Verdict] = TypeAdapter(Verdict)
_EPOCH: TypeAdapter[Epoch] = TypeAdapter(Epoch)


class Verdicts(RegistryFiles):
    """The verdicts and the held-out epochs; one process at a time writes."""

    def of(self, version: str) -> Verdict | None:
        """The verdict of a version; None for a candidate. Raises StoreError: it is damaged."""
        return self._read(self._path(version), _VERDICT)

    def give(self, verdict: Verdict) -> None:
        """Write a verdict. Raises StoreError: the disk refused; there is none then."""
        write_sealed(self._path(verdict.version), verdict, self._files)

    def give_by_hand(self, version: str, champion: str | None, pointer: int, why: str) -> None:
        """Note that a person promoted a version, unless it has a verdict. Raises StoreError as `give`."""
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

    def epoch(self, pair: PairId) -> Epoch | None:
        """The current epoch of this target and tokenizer, or their last one; None before the first attempt.

        Raises:
            StoreError: it is damaged.
        """
        return self._read(self._epoch_path(pair), _EPOCH)

    def open_attempt(
        self,
        attempt: Attempt,
        pair: PairId,
        settings: config.Gate,
        present: Mapping[str, str],
        draw: Callable[[int], list[str]],
    ) -> tuple[Epoch, int]:
        """Write down that a candidate is about to be scored.

        Args:
            attempt: the candidate and what it is compared with.
            pair: the one that the held-out records belong to.
            settings: of an epoch that begins now.
            present: the prompt group of each held-out record that the log has, by id.
            draw: given the number of a new epoch, the ids of its records.

        Returns:
            The epoch, without records that are gone, and the number of the attempt in it, from 1.

        Raises:
            StoreError: the disk refused, or a newer draftloop wrote the epoch.
        """

        def begun(number: int, settings: config.Gate) -> Epoch:
            fixed = {name: getattr(settings, name) for name in _FIXED}
            return Epoch(number=number, pair=pair, record_ids=tuple(draw(number)), **fixed)

        # 1. All verdicts of this target's epochs.
        verdicts = self._of_target(pair)

        # 2. The current epoch. Where its file is damaged or lost, the verdicts say how much of it was spent; attempts
        #    without a verdict are forgotten with it.
        epoch = None
        with suppress(DamagedFile):
            epoch = self.epoch(pair)
        number = max((verdict.epoch for verdict in verdicts), default=0)
        if epoch is None and number > 0:
            last = [verdict for verdict in verdicts if verdict.epoch == number]
            remembered = begun(number, settings.model_copy(update=last[-1].numbers.get("epoch", {})))
            epoch = replace(remembered, lost=max(verdict.attempt for verdict in last))

        # 3. It ends by a promotion, by its last attempt, or when too few of its prompts are left.
        if epoch is None or _is_over(epoch, attempt, verdicts, present):
            epoch = begun(epoch.number + 1 if epoch else 1, settings)

        # 4. The same weights against the same weights are the same attempt again.
        if attempt not in epoch.attempts:
            epoch = replace(epoch, attempts=(*epoch.attempts, attempt))
            write_sealed(self._epoch_path(pair), epoch, self._files)
        kept = tuple(record_id for record_id in epoch.record_ids if record_id in present)
        return replace(epoch, record_ids=kept), epoch.lost + epoch.attempts.index(attempt) + 1

    def open_epochs(self) -> list[Epoch]:
        """The epochs that another attempt may need the records of; one of each target at most.

        An epoch is over after a promotion, and when its last attempt has a verdict. Damaged ones are passed over.
        """
        epochs = []
        for path in sorted((self.root / EPOCHS).glob("*.json")):
            with suppress(DamagedFile):
                epoch = self._read(path, _EPOCH)
                if epoch is not None and not self._has_ended(epoch):
                    epochs.append(epoch)
        return epochs

    def _has_ended(self, epoch: Epoch) -> bool:
        verdicts = [one for one in self._of_target(epoch.pair) if one.epoch == epoch.number]
        waiting = {attempt.version for attempt in epoch.attempts} - {verdict.version for verdict in verdicts}
        spent = epoch.lost + len(epoch.attempts) >= epoch.max_attempts
        return any(one.outcome == "promoted" for one in verdicts) or (spent and not waiting)

    def _of_target(self, pair: PairId) -> list[Verdict]:
        """The verdicts that were given in epochs of a target; nobody knows what a damaged one said, `of` reports it."""
        verdicts: list[Verdict] = []
        for path in sorted((self.root / FOLDER).glob("*.json")):
            with suppress(DamagedFile):
                verdict = self.of(path.stem)
                if verdict is not None and verdict.pair is not None and _key(verdict.pair) == _key(pair):
                    verdicts.append(verdict)
        return verdicts

    def _epoch_path(self, pair: PairId) -> Path:
        name = hashlib.sha256(" ".join(_key(pair)).encode()).hexdigest()[:16]
        return self.root / EPOCHS / f"{name}.json"

    def _path(self, version: str) -> Path:
        return self.root / FOLDER / f"{version}.json"

    def _read(self, path: Path, kind: TypeAdapter[_Kept]) -> _Kept | None:
        return read_sealed(path, kind, SCHEMA, "Delete it: a version without a verdict is a candidate again.")


def _key(pair: PairId) -> tuple[str, str]:
    """The part of a pair that its held-out records depend on: not the draft."""
    return pair.target, pair.tokenizer


def _is_over(epoch: Epoch, attempt: Attempt, verdicts: list[Verdict], present: Mapping[str, str]) -> bool:
    groups = {present[record_id] for record_id in epoch.record_ids if record_id in present}
    promoted = any((one.outcome, one.epoch) == ("promoted", epoch.number) for one in verdicts)
    spent = epoch.lost + len(epoch.attempts) >= epoch.max_attempts and attempt not in epoch.attempts
    return promoted or spent or len(groups) < epoch.min_heldout_prompts
