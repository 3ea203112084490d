"""Where the layers of a self-draft are tried: a data directory within another one. Knows no model, and imports no mlx.

It holds copies of failures. So it goes with the trials, and what a killed process left of one goes with the next
trials, and whenever records are removed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..data_directory import DataDirectory
from ..store.files import storing

_TRIALS = ".layers-trial-"


@contextmanager
def trial_directory(data: DataDirectory) -> Iterator[DataDirectory]:
    """A data directory for the block; whoever enters holds the training lock. Raises StoreError: the disk refused."""
    data.files.make_directory(data.runs)
    remove_left_trials(data)
    with tempfile.TemporaryDirectory(prefix=_TRIALS, dir=data.runs) as folder:
        yield DataDirectory(Path(folder), data.settings)


def remove_left_trials(data: DataDirectory) -> None:
    """Remove what killed processes left; whoever calls it holds the training lock. Raises StoreError: as above."""
    for left in data.runs.glob(f"{_TRIALS}*"):
        with storing(left):
            data.files.remove(left)
