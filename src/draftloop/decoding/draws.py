"""Draws of tokens by their weights, by two races: between the blocks of a row, then between the tokens of the winner.

A race: with independent exponentials E_i of mean 1, the i with the greatest w_i / E_i is drawn with probability
w_i / Σ w. Neither a running sum nor a sorted row is needed, and no weight is too small beside another to win.

How exact it is. A quotient is computed to a relative δ <= 2**-22: E_i is rounded to float32, and so is the division,
which may be off by a last bit on a GPU. So i wins at least where its quotient exceeds the others by (1 + δ) / (1 - δ),
which has a probability of at least (1 - 2δ) w_i / Σ w. A race thus takes at most a share 2δ from any outcome, and two
of them differ from their law by less than 1e-6 in total variation, whatever the weights and V. The sums of the blocks
add their own rounding, some 1e-7, and 8e-6 were all roundings to fall one way (`row_sums`).

One race would take V exponentials per draw; two take about 2√V, and at most 6√V.
"""

from __future__ import annotations

import mlx.core as mx

from .row_blocks import block_shape, in_blocks, row_sums


def exponentials_per_draw(vocabulary: int) -> int:
    """How many exponentials a draw from so many tokens takes: one per block, then one per token of a block."""
    return sum(block_shape(vocabulary))


def draw_tokens(weights: mx.array, exponentials: mx.array) -> mx.array:
    """One token from each row, with the probability of its share of the row's weight; never one without weight.

    Args:
        weights: (..., V) float32, not negative, the greatest of a row at least 1e-35; they need not sum to 1.
        exponentials: (..., `exponentials_per_draw(V)`) float32, independent and exponential with mean 1, from 1e-30 to
            100, as `RandomStream.exponentials` draws them.

    Returns:
        (...,) tokens uint32, not evaluated.
    """
    blocks = in_blocks(weights)  # (..., blocks, width)
    count, width = blocks.shape[-2:]
    block = mx.argmax(row_sums(blocks) / exponentials[..., :count], axis=-1, keepdims=True)  # (..., 1)
    within = mx.take_along_axis(blocks, block[..., None], axis=-2).squeeze(-2)  # (..., width)
    return block.squeeze(-1) * width + mx.argmax(within / exponentials[..., count:], axis=-1)
