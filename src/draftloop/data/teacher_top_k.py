"""Teacher probabilities along one generation, cut to the top-k tokens, and their bytes. Knows no model and no file.

The bytes are little endian: a header (magic `DLTD`, version, N rows), then
    counts (N) uint32       how many tokens with mass each row keeps
    tokens (sum of counts) uint32, log-probabilities (as many) float32
    tails (N) float32
Rows keep only tokens with mass, so a one-hot row takes 16 bytes whatever k is. Who stores the bytes adds a checksum.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError

MAGIC = b"DLTD"
VERSION = 1
_HEADER = struct.Struct("<4sII")
_INTEGER, _REAL = np.dtype("<u4"), np.dtype("<f4")
_MOST_TOKEN = 2**31 - 1
_MASS_TOLERANCE = 0.01  # float32 sums over a vocabulary of 150,000 stay far below it; damage does not


class DistributionsError(StoreError):
    """Distributions that contradict themselves, or bytes that hold none."""


@dataclass(frozen=True, eq=False)
class TopK:
    """The top-k tokens of M distributions of the target, after the sampler's transforms.

    Attributes:
        tokens: (M, k) int32, the most probable first; 0 where a row has fewer than k tokens with mass.
        log_probs: (M, k) float32, descending; -inf there.
        tail: (M,) float32, the mass of every other token, in [0, 1].
    """

    tokens: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    tail: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.tail)

    def __getitem__(self, rows: slice) -> TopK:
        return TopK(self.tokens[rows], self.log_probs[rows], self.tail[rows])

    @property
    def k(self) -> int:
        """The most tokens that a row may hold."""
        return int(self.tokens.shape[1])


def concatenate_top_k(parts: Sequence[TopK]) -> TopK:
    """Rows one after another, in the order of `parts`, which are at least one and of one k."""
    return TopK(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.log_probs for part in parts]),
        np.concatenate([part.tail for part in parts]),
    )


def encode_top_k(rows: TopK) -> bytes:
    """The bytes of `rows`, one for every position of an output; tokens without mass are not among them.

    Raises:
        DistributionsError: they contradict themselves, or a number is not finite.
    """
    check_top_k(rows)
    kept = rows.log_probs > -np.inf  # (N, k)
    integers = np.concatenate([kept.sum(axis=1), rows.tokens[kept]]).astype(_INTEGER)
    reals = np.concatenate([rows.log_probs[kept], rows.tail]).astype(_REAL)
    return _HEADER.pack(MAGIC, VERSION, len(rows)) + integers.tobytes() + reals.tobytes()


def decode_top_k(data: bytes) -> TopK:
    """The rows of `encode_top_k`d bytes; k becomes the most tokens with mass that any of them has.

    Raises:
        DistributionsError: the bytes are cut short, too long, of a newer draftloop, or contradict themselves.
    """
    # 1. The header.
    if len(data) < _HEADER.size:
        raise DistributionsError(f"found {len(data)} bytes, expected a header of {_HEADER.size}")
    magic, version, length = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise DistributionsError(f"found {magic!r} at the start, expected {MAGIC!r}")
    if version != VERSION:
        raise DistributionsError(f"found version {version}, this draftloop reads version {VERSION}; update it")

    # 2. Every number has four bytes. Where the counts are cut short, fewer bytes are there than N alone asks for.
    words = np.frombuffer(data, _INTEGER, (len(data) - _HEADER.size) // 4, _HEADER.size)
    counts = words[:length].astype(np.int64)
    entries = int(counts.sum())
    expected = _HEADER.size + 8 * (length + entries)
    if len(data) != expected:
        raise DistributionsError(f"found {len(data)} bytes, expected {expected} by the counts in them")
    tokens, reals = words[length : length + entries], words[length + entries :].view(_REAL)
    if tokens.max(initial=0) > _MOST_TOKEN:
        raise DistributionsError(f"found the token {tokens.max()}, expected at most {_MOST_TOKEN}")

    # 3. Rows of one width again.
    kept = np.arange(int(counts.max(initial=1))) < counts[:, None]  # (N, k)
    tail = reals[entries:].astype(np.float32)
    rows = TopK(np.zeros(kept.shape, np.int32), np.full(kept.shape, -np.inf, np.float32), tail)
    rows.tokens[kept], rows.log_probs[kept] = tokens, reals[:entries]
    check_top_k(rows)
    return rows


def check_top_k(rows: TopK) -> None:
    """Refuse rows that cannot be distributions.

    Raises:
        DistributionsError: they contradict themselves, or a number is not finite.
    """
    shapes = rows.tokens.shape, rows.log_probs.shape, rows.tail.shape
    if len(shapes[0]) != 2 or shapes[0] != shapes[1] or shapes[0][:1] != shapes[2] or rows.k < 1:
        raise DistributionsError(
            f"tokens, log-probabilities, tails: found shapes {shapes}, expected (M, k), (M, k), (M,)"
        )
    for problem, wrong in _problems(rows).items():
        if wrong.any():
            raise DistributionsError(f"row {int(wrong.argmax())} of {len(rows)} has {problem}")


def within_width(rows: TopK, width: int) -> TopK:
    """The same distributions without the tokens from `width` on, whose mass goes to the tail."""
    beyond = (rows.tokens >= width) & (rows.log_probs > -np.inf)
    if not beyond.any():
        return rows
    moved = np.where(beyond, np.exp(rows.log_probs), 0.0).sum(axis=1, dtype=np.float32)
    log_probs = np.where(beyond, -np.inf, rows.log_probs).astype(np.float32)
    return TopK(np.where(beyond, 0, rows.tokens), log_probs, np.minimum(rows.tail + moved, np.float32(1.0)))


def _problems(rows: TopK) -> dict[str, NDArray[np.bool_]]:
    """What may be wrong with a row, and which of the M rows have it; a comparison with NaN is false."""
    log_probs = rows.log_probs
    tokens = np.sort(np.where(log_probs > -np.inf, rows.tokens, -1 - np.arange(rows.k)), axis=1)
    with np.errstate(invalid="ignore"):  # damaged bytes may be a NaN that numpy warns of
        mass = np.exp(np.minimum(log_probs, 0.0), dtype=np.float64).sum(axis=1) + rows.tail
    return {
        "log-probabilities that are no numbers up to 0": ~(log_probs <= 0).all(axis=1),
        "no token with mass": ~(log_probs[:, 0] > -np.inf),
        "log-probabilities that do not descend": ~(log_probs[:, 1:] <= log_probs[:, :-1]).all(axis=1),
        "a negative token": (rows.tokens < 0).any(axis=1),
        "a token twice": (tokens[:, 1:] == tokens[:, :-1]).any(axis=1),
        "a tail outside of 0 to 1": ~((rows.tail >= 0) & (rows.tail <= 1)),
        "a mass that is not 1": ~(np.abs(mass - 1) <= _MASS_TOLERANCE),
    }
