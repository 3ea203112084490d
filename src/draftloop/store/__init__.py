"""Files that survive a crash: atomic replacement, locks, journals, sealed files, and the seam that tests break.

In: bytes and paths. Out: what was written before or what was to be written, never half of it. Knows no record.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
