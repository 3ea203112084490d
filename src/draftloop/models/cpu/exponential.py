"""Compute exp as fast as this device can, where no gradient is taken."""

from __future__ import annotations

import math

import mlx.core as mx

LOG2_E = 1 / math.log(2)


def exp(values: mx.array) -> mx.array:
    """Elementwise. On a CPU MLX raises 2 to a power in less than half of the time that its exp takes."""
    if mx.default_device().type == mx.DeviceType.gpu:
        return mx.exp(values)
    return mx.power(2.0, values * LOG2_E)


def softmax(values: mx.array) -> mx.array:
    """Over the last axis, (..., V) with a largest value in each row that is finite."""
    if mx.default_device().type == mx.DeviceType.gpu:
        return mx.softmax(values, axis=-1)
    weights = exp(values - mx.max(values, axis=-1, keepdims=True))
    return weights / mx.sum(weights, axis=-1, keepdims=True)
