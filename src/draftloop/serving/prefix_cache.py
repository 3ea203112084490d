"""Prompt caches of earlier requests, found again by the longest beginning that a prompt has in common with them.

Kept by owner (an API key), so that nobody learns from the time of an answer what somebody else has asked, and by
what has read them: the target, or the draft with one adapter. Where a cache can be trimmed, any common beginning is of
use; a recurrent state only where its tokens are the prompt's beginning as a whole. The least recently used go first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..caches import RewindableCache

LEAST = 16  # tokens; reading fewer again costs less than a copy


@dataclass(frozen=True)
class Shelf:
    """Whose caches: `owner` says which API key, `reader` says which model has read, with what adapter."""

    owner: str
    reader: str


@dataclass(frozen=True)
class _Entry:
    shelf: Shelf
    tokens: NDArray[np.uint32]
    cache: RewindableCache
    nbytes: int


class PrefixCache:
    """Caches of beginnings, bounded in bytes. Of one thread.

    Args:
        most_bytes: of all caches together; 0 keeps none.

    Attributes:
        nbytes: that are held.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # the least recently used first
        self._next = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, shelf: Shelf, prompt: Sequence[int]) -> tuple[RewindableCache, int] | None:
        """A copy of the cache that has read most of a prompt, its last token left out, and how many tokens; or None."""
        tokens = np.asarray(prompt[:-1], np.uint32)
        best, length = None, LEAST - 1
        for number, entry in self._entries.items():
            if entry.shelf == shelf:
                common = _common(entry.tokens, tokens)
                if common > length and entry.cache.can_trim(len(entry.tokens) - common):
                    best, length = number, common
        if best is None:
            return None
        self._entries.move_to_end(best)
        entry = self._entries[best]
        cache = entry.cache.copy()
        cache.trim(len(entry.tokens) - length)
        return cache, length

    def keep(self, shelf: Shelf, tokens: Sequence[int], cache: RewindableCache) -> None:
        """Keep a cache that has read so many tokens, and is written on by nobody; what it makes superfluous goes."""
        held = np.asarray(tokens, np.uint32)
        cache.settle()
        nbytes = cache.nbytes
        if len(held) < LEAST or nbytes > self._most_bytes:
            return
        for number, entry in list(self._entries.items()):
            within = len(entry.tokens) <= len(held) and _common(entry.tokens, held) == len(entry.tokens)
            if entry.shelf == shelf and within and cache.can_trim(len(held) - len(entry.tokens)):
                self._drop(number)
        self._entries[self._next] = _Entry(shelf, held, cache, nbytes)
        self._next += 1
        self.nbytes += nbytes
        self.limit(self._most_bytes)

    def limit(self, most_bytes: float) -> None:
        """Hold no more than so many bytes now, and than `most_bytes` later; at least none."""
        while self.nbytes > max(0, most_bytes):
            self._drop(next(iter(self._entries)))

    def keep_readers(self, readers: Collection[str]) -> None:
        """Drop the caches of all other readers."""
        for number, entry in list(self._entries.items()):
            if entry.shelf.reader not in readers:
                self._drop(number)

    def clear(self) -> None:
        """Drop all of them."""
        self._entries.clear()
        self.nbytes = 0

    def _drop(self, number: int) -> None:
        self.nbytes -= self._entries.pop(number).nbytes


def _common(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> int:
    """How many leading tokens are the same."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(np.argmax(differs)) if differs.any() else length
