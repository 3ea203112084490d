"""What a training goes through, in which order.

In: records of the log and the replay buffer; later target samples and on-policy samples on the prompts that failed.
Out: examples (tokens and which of them are labels), the training mixture, the batch plan, and the curriculum that says
what each step is made of. Knows no gradient, no loss and no teacher.
"""
