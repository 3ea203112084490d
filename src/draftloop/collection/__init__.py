"""Makes records of prompts: the target generates, and the draft's proposals along its output are recorded.

In: a pair, prompts, settings. Out: records in the log, teacher probabilities in the blob file, and a report with the
acceptance so far. A rejected token becomes a disagreement here (`record`). Knows no training and no gate.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
