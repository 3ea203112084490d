"""Records become an adapter: the draft's LoRA weights learn what the target says where the draft was rejected.

As data walks: `dataset` chooses examples and batches, `teacher` gives the target's probabilities along them, `losses`
compares them with the draft's, `step` changes the weights, `loop` repeats it, `train` writes the version; `memory` fits
all of it into the machine. Knows no gate: whether the adapter is better is not its to say.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
