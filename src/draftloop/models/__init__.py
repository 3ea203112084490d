"""Models on disk become a target and a draft in memory, with the draft's adapter on or off.

In: names or directories of models, and of an adapter. Out: a `Pair` whose token ids mean the same to both models.
Knows no prompt, no record and no version: which adapter is in use is the registry's to say.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
