"""Importing this prepares the process for measuring, as the command line does; it comes before whatever imports MLX."""

from draftloop import prepare_process

prepare_process()
