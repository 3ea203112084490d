"""Prompts become records: the target answers, and what the draft proposed or would have proposed is noted.

In: a pair, prompts, settings. Out: records in the log, and a report. Knows no training and no gate.
"""
