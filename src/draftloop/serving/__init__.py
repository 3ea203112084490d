"""Answers OpenAI's API over HTTP with the champion.

In: bodies of requests, and tokens as they are decoded. Out: `Asked`, what a request asks for, or the `ApiError` that is
its answer; and the JSON of answers, whole or in chunks. Knows no training and no gate.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
