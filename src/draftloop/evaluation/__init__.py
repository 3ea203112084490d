"""Measure a draft: acceptance from one pass over finished outputs, speed on this machine, and the decisions on both.

In: a pair and records or prompts. Out: estimates with intervals, speed, and the decisions of `gate` about a candidate,
of `looks` about the champion and of `drift` about a source. Knows no training, and moves no pointer:
`retraining.gate_step` acts on the decisions.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
