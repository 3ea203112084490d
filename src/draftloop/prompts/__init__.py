"""Files and logs become prompts, and a prompt becomes tokens.

In: text files, JSON in several formats, logs of clients; a tokenizer and its chat template. Out: `Prompt`, and its
tokens or the reason why it has none. A template runs in a sandbox, and a prompt stays text whatever it spells. Knows no
model and no record.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
