"""What people have becomes prompts, and a prompt becomes token ids.

In: text files, JSON in several formats, logs of clients; a tokenizer and its chat template. Out: `Prompt`, and ids or
the reason why there are none. Knows no model and no record.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
