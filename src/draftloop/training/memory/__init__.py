"""A training within the memory that there is: micro-batches in parts, activations computed again."""
