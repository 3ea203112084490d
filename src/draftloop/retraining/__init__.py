"""What `retrain` does unattended: train, gate the candidate, promote or refuse it, test the champion again, roll back.

In: a data directory and a configuration. `facts` reads the facts, `plan` chooses the next action (a pure function), and
`run` has it done by `train_step` or `gate_step`, until nothing is left to do. Out: versions, verdicts, a moved pointer,
and one line in the audit. `evaluation.gate.decide` decides; the live check of `evaluation.gate_evaluation` may still
refuse; `gate_step` acts on it; `Registry._move` moves the pointer. Knows no loss, no statistics and no scheduler.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
