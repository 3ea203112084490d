"""What `retrain` does without a person: it plans the next action, and takes it until nothing is to be done.

In: a data directory and the configuration. Out: a trained version, a verdict, a promotion or a rollback, and a line of
the audit. `plan` decides from facts alone; the steps do what it says. Knows no scheduler and no terminal.
"""
