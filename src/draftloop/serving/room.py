"""How many bytes the caches of requests may take together, reckoned before a request begins. Knows no request's text.

A request is reckoned with its whole prompt and the longest answer that it may get, of both models. On a CPU the system
ends a process that takes more than there is, so what would not fit waits, or is refused where it never will. An answer
whose length is left open gets a share, so that as many requests as may be under way fit side by side.
"""

from __future__ import annotations

from ..decoding.prompt_caches import RowBytes, row_bytes
from ..models.pair import Pair
from ..runtime.memory import MEGABYTE
from .api_error import ApiError

LEAST_OPEN = 256  # tokens of an answer whose length is left open, where a share is smaller


class Room:
    """Bytes for requests under way, and beside them for caches of earlier ones.

    Args:
        rows: what the cache of a sequence takes, of each model.
        most_bytes: of everything together.
        at_once: requests that may be under way.
    """

    def __init__(self, rows: tuple[RowBytes, ...], most_bytes: float, at_once: int) -> None:
        self._rows, self._most_bytes, self._at_once = rows, most_bytes, at_once

    @classmethod
    def of(cls, pair: Pair, most_bytes: float, at_once: int) -> Room:
        """For a pair that is loaded; a token is read with each model to see what it takes."""
        return cls((row_bytes(pair.target), row_bytes(pair.draft)), most_bytes, at_once)

    def with_pair(self, pair: Pair) -> Room:
        """The same bytes for another pair that is loaded."""
        return Room.of(pair, self._most_bytes, self._at_once)

    def bytes_of(self, prompt: int, answer: int) -> float:
        """What a request takes at the end of its answer; lengths in tokens."""
        return sum(row.of(prompt + answer) for row in self._rows)

    def open_answer(self, prompt: int, most: int) -> int:
        """Tokens of an answer whose length is left open, after a prompt of so many: at most `most`, at least one.

        It is what a share holds, or LEAST_OPEN where that is more and there is memory for it.
        """
        share = self._longest(prompt, most, self._most_bytes / self._at_once)
        return max(share, self._longest(prompt, min(LEAST_OPEN, most), self._most_bytes))

    def _longest(self, prompt: int, most: int, most_bytes: float) -> int:
        """Tokens of the longest answer that fits into so many bytes; one where none does."""
        low, high = 1, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.bytes_of(prompt, middle) <= most_bytes:
                low = middle
            else:
                high = middle - 1
        return low

    def check(self, prompt: int, answer: int) -> None:
        """Raises ApiError for a request that does not fit by itself."""
        wanted = self.bytes_of(prompt, answer)
        if wanted > self._most_bytes:
            raise ApiError(
                400,
                f"a prompt of {prompt} tokens and an answer of up to {answer} need {wanted / MEGABYTE:,.0f} MB of "
                f"memory; expected at most {self._most_bytes / MEGABYTE:,.0f} MB; shorten the prompt, or max_tokens",
                code="context_length_exceeded",
            )

    def left(self, taken: float) -> float:
        """Bytes that are left beside requests that take so many."""
        return self._most_bytes - taken
