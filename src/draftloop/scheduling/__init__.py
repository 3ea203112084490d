"""`retrain` without a person: a job, the units that three schedulers take, and the log of what came of it (no mlx).

job says what runs; units writes it for cron, launchd and systemd; crontab and unit_files put it in place; run is what
the unit starts. Knows nothing of what retraining is.
"""
