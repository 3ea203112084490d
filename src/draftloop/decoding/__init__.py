"""Draft and verify: proposals of the draft, one pass of the target, and what is kept by an acceptance rule.

In: a pair, prompt ids, a sampler. Out: rounds of tokens that have the target's own distribution, live or, for text that
is there already, drawn afterwards. Knows no file and no record.
"""
