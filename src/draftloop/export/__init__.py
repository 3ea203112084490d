"""A version leaves the data directory: as an adapter or a whole draft for plain mlx-lm, measured as it was written.

In: a version and its pair. Out: a directory with weights, a manifest and a model card.
"""
