"""Which tokens a draft may propose in a data directory, and why. Knows no model and no mlx.

A draft's step computes a logit for every token of the vocabulary, and most of them are hardly ever used. A draft that
leaves these out proposes by a q that is 0 there, and every acceptance rule is exact with any q (the head over the most
frequent tokens is that of arXiv 2502.14856). The choice is made once for a draft, after its first training.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

from ..store.files import FILES, Files
from ..store.lock import Lock
from ..store.sealed import read_sealed, write_sealed

SCHEMA = 1
FILE = "draft_vocabulary.json"


@dataclass(frozen=True, slots=True)
class VocabularyTrial:
    """What a trained draft gives with so many tokens.

    Attributes:
        size: n; the largest is the whole vocabulary.
        t_draft: seconds of a draft step.
        acceptance: per position on generations that it was not trained on.
        num_draft_tokens: the K with the highest forecast.
        forecast: speed-up at that K over decoding without a draft.
    """

    size: int
    t_draft: float
    acceptance: float
    num_draft_tokens: int
    forecast: float


@dataclass(frozen=True, slots=True)
class DraftVocabulary:
    """The tokens that a draft may propose.

    Attributes:
        tokens: n different ones, ascending; none where it may propose all.
        head: where the draft's head lies, by its dotted name.
        why: one sentence.
        trials: what was measured, by size.
    """

    tokens: tuple[int, ...]
    head: str
    why: str
    trials: tuple[VocabularyTrial, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether it may propose every token."""
        return not self.tokens

    def summary(self) -> dict[str, Any]:
        """For people and programs: how many tokens (null is all), why, and what was measured, without the tokens."""
        return {"size": len(self.tokens) or None, "why": self.why, "trials": [asdict(one) for one in self.trials]}


def most_used(counts: Counter[int], always: frozenset[int], size: int, width: int) -> tuple[int, ...]:
    """The `size` tokens that are most used, ascending.

    Args:
        counts: how often each token was emitted.
        always: those that are among them however rare, such as the ones that end an output.
        size: at most `width`; more of `always` than that are all taken.
        width: tokens are 0 to `width` - 1. Where fewer were emitted than asked for, the lowest of the others follow:
            tokenizers number tokens about as they are frequent.
    """
    chosen = {token for token in always if token < width}
    by_use = sorted(((-count, token) for token, count in counts.items() if token < width))
    for _, token in by_use:
        if len(chosen) >= size:
            break
        chosen.add(token)
    lowest = (token for token in range(width) if token not in chosen)
    chosen.update(token for token, _ in zip(lowest, range(size - len(chosen)), strict=False))
    return tuple(sorted(chosen))


@dataclass(frozen=True, slots=True)
class _Kept:
    by_draft: dict[str, DraftVocabulary] = field(default_factory=dict)
    schema: Literal[1] = 1
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


_KEPT = TypeAdapter(_Kept)


class DraftVocabularyFile:
    """The choices of one data directory. Making one touches nothing.

    Args:
        root: the data directory.
        files: the seam for the operations that change something.
    """

    def __init__(self, root: Path, files: Files = FILES) -> None:
        self._path, self._files = root / FILE, files
        self._lock = Lock(root / ".draft_vocabulary.lock", files=files)

    def of(self, draft: str) -> DraftVocabulary | None:
        """What is kept for the draft of that name. Raises StoreError: damaged, or a newer draftloop wrote it."""
        return self._read().by_draft.get(draft)

    def keep(self, draft: str, vocabulary: DraftVocabulary) -> None:
        """Keep a choice; one that is there stays. Raises StoreError: as `of`, or the disk refused."""
        if self.of(draft) is not None:
            return
        with self._lock:
            write_sealed(self._path, _Kept({draft: vocabulary} | self._read().by_draft), self._files)

    def _read(self) -> _Kept:
        remedy = "Restore it, or delete it: the tokens that a draft may propose are then chosen anew."
        return read_sealed(self._path, _KEPT, SCHEMA, remedy) or _Kept()
