"""Schedules `retrain` by cron, launchd or systemd.

In: a job, that is a command of draftloop, when it runs, where, and with which variables.
Out: a unit in the user's scheduler, a comparison of the installed unit with the job, and a log of every run.
Knows nothing of what retraining is. Imports no MLX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
