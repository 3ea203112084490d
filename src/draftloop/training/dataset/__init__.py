"""What a training goes through: examples of the log, and new ones, in which order. No gradient, no loss."""
