"""Records of rejections become a new version of the draft's adapter.

In: the log's splits `train` and `validation`, the replay buffer, the logged top-k tokens, or the target itself.
Out: a version in the registry, a run directory that reproduces it, a result with a token report. `train` -> `loop` ->
`step` -> `chunked_loss` -> `losses`; `dataset` says what each step is made of, `teacher` what the target says there.
Knows no command line, no held-out generation and no gate.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
