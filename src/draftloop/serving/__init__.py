"""`draftloop serve`: OpenAI's clients get the champion's speed, and what the target rejects is logged.

In: HTTP requests. Out: answers in one piece or streamed, metrics, and records of what was decoded. Who may come in and
how much one may send (`security`, `api_keys`, `limits`, `connections`) is decided before anything of a request is read.
Knows nothing of training.
"""
