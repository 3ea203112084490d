"""`draftloop serve`: OpenAI's clients get the champion's speed, and what the target rejects is logged.

In: HTTP requests. Out: answers in one piece or streamed, metrics, and records of what was decoded. Who may come in and
how much one may send is decided before anything of a request is read (`guard`); one thread owns the models (`engine`).
What trains while nobody asks is a process of its own (`learning`). Knows no loss and no gate.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
