"""Where the embedded pair comes from: the text that every Python carries, and the training of both models on it.

In: the standard library of the interpreter that runs it. Out: the models, prompts and card of `draftloop.reference`.
Nothing that draftloop does needs this; `make reference` runs it.
"""
