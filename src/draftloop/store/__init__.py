"""Files that survive a crash: atomic replacement, locks, journals, sealed files, and the seam that tests break.

In: bytes and paths. Out: what was written before or what was to be written, never half of it. Knows no record.
"""
