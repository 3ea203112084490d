"""What `retrain` does when nobody watches: train, evaluate by the gate, promote or refuse, look again, roll back.

In: a data directory and a configuration. `facts` reads the facts, `plan` says the next action (a pure function), `run`
does it by `train_step` and `gate_step` (where a promotion is decided), until nothing is left to do. Out: versions,
verdicts, a moved pointer, and one line in the audit. Knows no loss, no statistics and no scheduler.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
