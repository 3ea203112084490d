"""Prepares a process for computing on a Linux CPU, before MLX is first imported; elsewhere nothing is done.

Importing draftloop changes nothing in a process. The command line calls this first; who uses draftloop as a library
calls it before anything imports MLX, or goes without.
"""

from __future__ import annotations

from . import blas, malloc


def prepare_process() -> None:
    """Put a fast BLAS under MLX, and let the C library keep the memory that MLX frees, where MLX runs on a Linux CPU.

    Once is enough. MLX must not be imported yet: what links to the reference BLAS stays with it.
    """
    blas.preload()
    if blas.is_needed():
        malloc.keep_freed()
