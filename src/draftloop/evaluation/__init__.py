"""How good a draft is: acceptance from one pass over finished outputs, what decoding costs, and whether that is proof.

In: a pair and records or prompts. Out: estimates with intervals, and verdicts of gate, looks and drift. Knows no
training, and changes nothing that is in use.
"""
