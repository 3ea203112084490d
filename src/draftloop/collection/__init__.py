"""Prompts become records: the target answers, and what the draft proposed or would have proposed is noted.

In: a pair, prompts, settings. Out: records in the log, and a report. Knows no training and no gate.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
