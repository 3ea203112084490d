"""What is kept of generations: the record, the log of them, the teacher's distributions beside it, replay and splits.

In: records of finished generations. Out: the same records, by split, of any pair, as long as they last. Knows no model;
`store` is what it writes with.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
