"""The versions of the draft's adapter: each is made once and never changed, and one of them is the champion.

In: a trained adapter, and what it was trained on. Out: versions and the pointer to the champion (`registry`), and the
verdict on each version (`verdicts`). Knows no training, and decides nothing: `evaluation.gate.decide` decides; the live
check of `evaluation.gate_evaluation` may still refuse; `retraining.gate_step` acts on it; `Registry._move` moves the
pointer.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
