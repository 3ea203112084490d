"""The versions of the draft's adapter: made once, never changed, one of them the champion.

In: an adapter that was trained, and what it was trained on. Out: versions, the pointer to the champion, and the
verdicts that were given on them. Knows no training; what a verdict says is the gate's to decide.
"""
