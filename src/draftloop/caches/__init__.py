"""Prompt caches that take tokens back exactly, whatever a model keeps of what it read.

In: a model of mlx-lm's. Out: how its caches take tokens back (`probe`), and caches that do (`rewindable`), for a
draft's rejected tokens; copies of them at any position. Windows are replaced (`windows`), recurrent states are put back
(`leaves`), and recurrent layers read again what stays (`recorder`). Knows no pair, no sampling and no output.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
