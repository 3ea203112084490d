"""Files that survive a crash: atomic replacement, locks, journals, sealed files, strict YAML.

In: bytes, values and paths. Out: files; after a crash the old one or the new one, never half of one.
Damage is an error. Every operation that changes the disk goes through one seam, `Files`, where tests make it fail.
Knows no record, no adapter and no run. Imports no MLX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
