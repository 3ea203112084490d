"""Models on disk become a target and a draft in memory, with the draft's adapter on or off.

In: names or directories of models, and of an adapter. Out: a `Pair` whose tokens mean the same to both models, with
the names by which a data directory knows them. Nothing of a model directory runs unless that is allowed. Knows no
prompt and no champion: which adapter is in use is the registry's to say.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
