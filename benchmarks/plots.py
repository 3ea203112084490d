"""One look for every picture of the documents: white, so that it reads on light and dark pages, and the same each time.

`python benchmarks/…` draws with it; it knows nothing of what is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")  # Okabe and Ito's, told apart by every eye
GREY = "#666666"
_STYLE: Any = {  # matplotlib types the keys one by one, in its newest version alone
    "svg.hashsalt": "draftloop",  # or every id in the file is random
    "font.family": "DejaVu Sans",  # comes with matplotlib; drawn as paths, so that no reader needs it
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
}


def panels(columns: int = 1, *, width: float = 7.2, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """An empty picture with so many panels side by side that share the y axis; sizes in inches."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
        axes = figure.subplots(1, columns, sharey=True, squeeze=False)
    return figure, list(axes[0])


def save(figure: Figure, name: str, folder: Path = FOLDER) -> Path:
    """Write `<name>.svg`, the same bytes for the same picture; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    with mpl.rc_context(_STYLE):
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    return path
