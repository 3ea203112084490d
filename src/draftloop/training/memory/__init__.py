"""A training within the memory that there is.

In: micro-batches, a learner and a budget in bytes. Out: how micro-batches are cut into parts and whether activations
are computed again (`fitting.Fit`): estimated before the first step, made smaller when MLX is out of memory. Knows no
epoch, no loss and no record.
"""
