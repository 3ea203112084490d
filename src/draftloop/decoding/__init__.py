"""Draft and verify: the draft proposes tokens, one pass of the target verifies them, an acceptance rule keeps a prefix.

In: a pair, prompt tokens, a sampler. Out: rounds of tokens that have the target's own distribution (`decoder`, where
both caches are trimmed too), many target-only generations at a time (`batched_generation`), and speculative rounds
simulated offline on these (`offline_rounds`). Knows no file and no training, and reads of a record only
its generation (`teacher_forced.TargetGeneration.of`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
