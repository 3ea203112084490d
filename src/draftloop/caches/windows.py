"""Windows that take tokens back: keys and values in temporal order, with some older ones than are shown.

mlx-lm's window overwrites its oldest entry once it is full, so what a rejected token has displaced is gone. Here the
displaced entries stay for a while: a window of W shows the last W - 1 tokens and the new ones, as mlx-lm's does, and
holds `slack` more. Entries never change place between two moves of the buffer, so a step writes its own entries alone.
A layer of mlx-lm cannot tell the difference: masks are made by mlx-lm's own code, and whoever looks at
`keys_and_values` sees what mlx-lm shows.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ChunkedKVCache, RotatingKVCache


class WindowCache(RotatingKVCache):  # type: ignore[misc]  # mlx-lm is untyped
    """The last `max_size` tokens of one layer, and `slack` more that rewinding may bring back.

    Args:
        max_size: W, tokens that a token sees, itself among them.
        slack: the most tokens that are taken back at once.
    """

    keys: Any  # an array, or None before the first pass
    values: Any

    def __init__(self, max_size: int, slack: int) -> None:
        super().__init__(max_size, keep=0)
        self.slack = slack
        self._end = 0  # of what is held in the buffer
        self._shown = 0  # entries that the latest pass saw, its own among them

    @classmethod
    def of(cls, cache: RotatingKVCache, slack: int) -> WindowCache:
        """One that goes on from where a window of mlx-lm's is, whose entries are in the order of their tokens."""
        window = cls(cache.max_size, slack)
        if cache.keys is not None:
            window.keys, window.values = (table[..., : cache._idx, :] for table in (cache.keys, cache.values))
            window.offset, window._end, window._idx = cache.offset, cache._idx, cache._idx
        return window

    def stock(self) -> RotatingKVCache:
        """mlx-lm's window with what this one shows next."""
        cache = RotatingKVCache(self.max_size)
        if self.keys is not None:
            length = min(self.offset, self.max_size)  # what mlx-lm takes such a window to hold
            held = min(self._end, length)
            missing = [(0, 0), (0, 0), (length - held, 0), (0, 0)]  # the oldest, which the next token displaces unseen
            cache.keys, cache.values = (
                mx.pad(table[..., self._end - held : self._end, :], missing) for table in (self.keys, self.values)
            )
            cache.offset, cache._idx = self.offset, length
        return cache

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append S entries, (B, heads, S, width); returns the window before them, and them."""
        count = keys.shape[2]
        if self.keys is None or self._end + count > self.keys.shape[2]:
            self._move(keys, values)
        start, self._end = self._end, self._end + count
        self.keys[..., start : self._end, :] = keys
        self.values[..., start : self._end, :] = values
        self._shown = min(self.offset, self.max_size - 1) + count
        self.offset += count
        self._idx = self._end
        return self.keys_and_values()

    def _move(self, keys: mx.array, values: mx.array) -> None:
        """To a buffer with room for the new entries and a step more, with what may still be seen."""
        kept = min(self._end, self.max_size - 1 + self.slack)
        needed = kept + keys.shape[2]
        room = -(-needed // self.step) * self.step + self.step - kept

        def moved(old: mx.array | None, new: mx.array) -> mx.array:
            fresh = mx.zeros((*new.shape[:2], room, new.shape[3]), new.dtype)
            if old is None or not kept:
                return fresh
            return mx.concatenate([old[..., self._end - kept : self._end, :], fresh], axis=2)

        self.keys, self.values = moved(self.keys, keys), moved(self.values, values)
        self._end = kept

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """What the latest pass saw."""
        first = self._end - self._shown
        return self.keys[..., first : self._end, :], self.values[..., first : self._end, :]

    def make_mask(
        self,
        N: int,  # noqa: N803 - mlx-lm's name
        window_size: int | None = None,
        return_array: bool = False,
    ) -> mx.array | str | None:
        """Which of the entries shown each of N new tokens sees; None for all."""
        if N == 1:
            if window_size is None or not window_size < self.max_size or self.offset < window_size:
                return None
            shown = min(self.offset + 1, self.max_size)
            return mx.arange(shown) >= shown - window_size
        mask: mx.array | str | None = super().make_mask(N, window_size, return_array)
        return mask

    def is_trimmable(self) -> bool:
        """Always, up to `slack`."""
        return True

    def holds(self, n: int) -> bool:
        """Whether the last n tokens can be taken back."""
        return bool(self._end - n >= min(self.offset - n, self.max_size - 1))

    def trim(self, n: int) -> int:
        """Take the last n tokens back; returns n, or how many there were."""
        n = min(n, self.offset)
        if not self.holds(n):
            raise ValueError(f"{n} tokens to take back; a window of {self.max_size} was made for {self.slack}")
        self.offset -= n
        self._end -= n
        self._idx = self._end
        return n


class ChunkCache(ChunkedKVCache):  # type: ignore[misc]
    """The current chunk of one layer, and `slack` tokens of the one before, of which the model's mask shows none.

    mlx-lm's drops the chunk before at once, and could not go back across its border.
    """

    keys: Any  # an array, or None before the first pass
    values: Any

    def __init__(self, chunk_size: int, slack: int) -> None:
        super().__init__(chunk_size)
        self.slack = slack

    def holds(self, n: int) -> bool:
        """Whether the last n tokens can be taken back: a whole chunk has to be left, or all there was."""
        return bool(self.start_position == 0 or self.offset - n - self.start_position >= self.chunk_size)

    def maybe_trim_front(self) -> None:
        """Drop the front, but only where it has grown by a step: each time copies all that stays."""
        held = self.offset - self.start_position
        if self.keys is None or held <= self.chunk_size + self.slack + self.step:
            return
        dropped = held - self.chunk_size - self.slack
        self.start_position += dropped
        self.keys, self.values = (table[..., dropped:held, :] for table in (self.keys, self.values))
