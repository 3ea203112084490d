"""A stream of random numbers of its own for each seed, drawn on the host; knows nothing of what is drawn with them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
_SMALLEST = np.float32(2.0**-64)  # so that nothing is divided by 0; a smaller one comes once in 2**64 times


class RandomStream:
    """Uniforms and exponentials in the order in which they are asked for; the same wherever NumPy is the same.

    Streams of one seed have nothing to do with each other: a draw from one changes nothing in another.

    Args:
        seed: 0 .. 2**64 - 1.
        stream: which of its streams.
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        self._generator = np.random.Generator(np.random.Philox(key=(stream << 64) | seed))

    def uniforms(self, *shape: int) -> NDArray[np.float32]:
        """In [0, 1): multiples of 2**-53, rounded to float32.

        P(u < t) is within 2**-25 of t, and near 0 within 2**-24 of it relative to t, down to 2**-53.
        """
        return np.minimum(self._generator.random(shape).astype(np.float32), _BELOW_ONE)

    def exponentials(self, *shape: int) -> NDArray[np.float32]:
        """Of mean 1, in float64, rounded to float32: from 2**-64 to less than 100."""
        return np.maximum(self._generator.standard_exponential(shape).astype(np.float32), _SMALLEST)
