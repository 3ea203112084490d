"""The versions of the draft's adapter: made once, never changed, one of them the champion.

In: a trained adapter, and what it was trained on. Out: versions and the pointer to the champion (`registry`, the only
place that moves it), and the verdicts that were given. Knows no training, and decides nothing: what a verdict says is
decided in `evaluation.gate`, when a version is promoted in `retraining.gate_step`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
