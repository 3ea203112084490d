"""The process and the machine: a fast BLAS, memory and its limits, random state, signals, progress bars.

Knows no model, no record and no setting of its own. `blas` has to come before the first import of MLX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
