"""A version leaves the data directory: alone or fused into its draft, for plain mlx-lm, with a model card.

In: a version, its draft and held-out records. Out: a directory whose files were loaded back and measured (`verify`)
before it appeared. Knows no training and no champion.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
