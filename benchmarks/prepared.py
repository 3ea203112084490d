"""Prepares the process for computing: every benchmark script imports this first, for nothing may import MLX before.

A spawned process imports its script anew, and so is prepared too.
"""

from __future__ import annotations

from draftloop import prepare_process

prepare_process()
