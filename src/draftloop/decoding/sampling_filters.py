"""Turn logits into the distribution that a sampler samples from: mlx-lm's filters in mlx-lm's order; no randomness.

Top-p, min-p and top-k look at the log-softmax at temperature 1; only then the temperature divides, and what is left is
normalised again. Everything is float32. Temperature 0 gives the one-hot distribution of the argmax.
"""

from __future__ import annotations

import math

import mlx.core as mx

from ..data.records import Sampler
from .row_blocks import row_sums

_PART, _LEAST_PART = 1 / 16, 256  # of a vocabulary, that is sorted first


def sampling_log_probs(logits: mx.array, sampler: Sampler, width: int) -> mx.array:
    """The log-distribution that `sampler` draws from.

    Args:
        logits: (..., V), any float type, V >= width.
        sampler: temperature >= 0 and the filters; 0 turns top-k and min-p off, 0 or 1 turns top-p off.
        width: number of tokens that target and draft share; tokens from there on have no mass.

    Returns:
        (..., width) float32; -inf where there is no mass; exp of it sums to 1.
    """
    if sampler.temperature == 0:
        return mx.where(sampling_probs(logits, sampler, width) > 0, 0.0, -mx.inf)
    return _log_softmax(scaled_logits(logits, sampler, width))


def sampling_probs(logits: mx.array, sampler: Sampler, width: int) -> mx.array:
    """The distribution that `sampler` draws from, as probabilities; one exponential per token. Args as above."""
    if sampler.temperature == 0:
        logits = logits[..., :width]
        return (mx.arange(width) == mx.argmax(logits, axis=-1, keepdims=True)).astype(mx.float32)
    probs = mx.softmax(scaled_logits(logits, sampler, width), axis=-1, precise=True)
    return probs / row_sums(probs)[..., None]  # on a CPU a softmax over 152,000 tokens has a mass of 1 ± 2e-4


def scaled_logits(logits: mx.array, sampler: Sampler, width: int) -> mx.array:
    """What the softmax is taken of to have the distribution that `sampler` draws from, above temperature 0.

    Args:
        logits: (..., V), any float type, V >= width.
        sampler: its temperature is above 0.
        width: number of tokens that target and draft share.

    Returns:
        (..., width) float32, filtered and divided by the temperature; -inf where there is no mass.
    """
    logits = logits[..., :width].astype(mx.float32)
    unfiltered = not (0 < sampler.top_p < 1 or sampler.min_p > 0 or 0 < sampler.top_k < width)
    if unfiltered:
        return logits / sampler.temperature
    log_probs = _log_softmax(logits)
    if 0 < sampler.top_p < 1:
        log_probs = _keep_top_p(log_probs, sampler.top_p)
    if sampler.min_p > 0:
        floor = mx.max(log_probs, axis=-1, keepdims=True) + math.log(sampler.min_p)
        log_probs = mx.where(log_probs < floor, -mx.inf, log_probs)
    if 0 < sampler.top_k < width:
        log_probs = _keep_top_k(log_probs, sampler.top_k)
    return log_probs / sampler.temperature


def _log_softmax(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _keep_top_p(log_probs: mx.array, top_p: float) -> mx.array:
    """The fewest top tokens whose mass reaches `top_p`; ties with the last one stay.

    On a CPU the sort of a large vocabulary takes several times as long as all the rest, and its top nearly always has
    the mass. To see whether it has, the top is computed at once; on a GPU a sort is quick, and nothing is waited for.
    """
    width = log_probs.shape[-1]
    part = max(_LEAST_PART, int(width * _PART))
    if mx.default_device() == mx.cpu and part < width:
        ascending = mx.sort(mx.topk(log_probs, part, axis=-1), axis=-1)
        above = _mass_above(ascending)
        if mx.all(above[..., 0] >= top_p).item():
            return _without_those_below(log_probs, ascending, above, top_p)
    ascending = mx.sort(log_probs, axis=-1)
    return _without_those_below(log_probs, ascending, _mass_above(ascending), top_p)


def _mass_above(ascending: mx.array) -> mx.array:
    """The mass of everything more probable than each."""
    return mx.cumsum(mx.exp(ascending), axis=-1, reverse=True, inclusive=False)


def _without_those_below(log_probs: mx.array, ascending: mx.array, above: mx.array, top_p: float) -> mx.array:
    dropped = mx.sum(above >= top_p, axis=-1, keepdims=True)
    threshold = mx.take_along_axis(ascending, mx.minimum(dropped, ascending.shape[-1] - 1), axis=-1)
    return mx.where(log_probs < threshold, -mx.inf, log_probs)


def _keep_top_k(log_probs: mx.array, top_k: int) -> mx.array:
    """Exactly `top_k` tokens, as mlx-lm picks them where several tie."""
    out = mx.argpartition(-log_probs, kth=top_k - 1, axis=-1)[..., top_k:]
    return mx.put_along_axis(log_probs, out, mx.array(-mx.inf, mx.float32), axis=-1)
