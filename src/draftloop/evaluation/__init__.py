"""How good a draft is: acceptance from one pass over finished outputs, speed on this machine, and what that proves.

In: a pair and records or prompts. Out: estimates with intervals, speed, and what `gate` decides about a candidate,
`looks` about the champion and `drift` about a source. Knows no training, and moves no pointer: `retraining.gate_step`
acts on the decisions.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
