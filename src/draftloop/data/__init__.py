"""What is kept of generations: the record, the log of them, the teacher's distributions beside it, replay and splits.

In: records of finished generations. Out: the same records, by split, of any pair, as long as they last. Knows no model;
`store` is what it writes with.
"""
