"""What concerns the process and its machine: a fast BLAS, memory limits, random state, signals, progress bars.

In: the platform, environment variables, signals, the terminal. Out: OpenBLAS under MLX, a memory budget, a request to
stop, one line of progress.
Knows no model, no record and no setting. `prepare_process` must come before the first import of MLX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
