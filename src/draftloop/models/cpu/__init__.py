"""Adapt a loaded model to run well on a CPU; nothing of this is used on a GPU.

In: a model of mlx-lm. Out: the same model, whose outputs differ by rounding alone.
"""
