"""The data that training and measuring read: records, the log, teacher probabilities, the replay buffer, splits.

In: records of finished generations, and the top-k tokens of their teacher. Out: the same records, by split, of any
pair; near-duplicate prompts are in one group and one split (`joined_groups`). `store` writes the files. Knows no model
and no training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
