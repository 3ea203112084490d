"""A version leaves the data directory: alone or fused into its draft, for plain mlx-lm, with a model card.

In: a version, its draft and held-out records. Out: a directory whose files were loaded back and measured (`verify`)
before it appeared. Knows no training and no champion.
"""
