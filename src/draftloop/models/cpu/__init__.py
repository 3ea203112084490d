"""What is done to a loaded model so that it runs well on a CPU; nothing of it is used on a GPU.

In: a model of mlx-lm. Out: the same model, whose outputs differ by rounding alone.
"""
