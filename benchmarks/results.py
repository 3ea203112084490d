"""What every benchmark writes: machine, versions, conditions, and figures against what they should reach."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Figure:
    """One measured value and its bound: `at_least`, `at_most`, or none where it is reported alone.

    `interval` is its low and high end, where it has one.
    """

    figure: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the bound holds; None where there is none."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    def to_json(self) -> dict[str, Any]:
        """The row of the results file."""
        row = {"figure": self.figure, "value": self.value, "unit": self.unit}
        for name in ("at_least", "at_most", "interval", "reached"):
            if (value := getattr(self, name)) is not None:
                row[name] = value
        return row


def write(name: str, conditions: dict[str, Any], figures: Iterable[Figure], **tables: Any) -> Path:
    """Write `benchmarks/results/<name>.json`; returns its path.

    Raises:
        RuntimeError: MLX computes here with the reference BLAS, with which nothing is worth measuring.
    """
    from draftloop.runtime import blas

    if blas.is_needed() and blas.loaded() is None:
        raise RuntimeError(
            f"nothing is written: MLX has the reference BLAS; {blas.remedy()}, and call prepare_process() before "
            "anything imports MLX"
        )
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    content = {
        "machine": machine(),
        "versions": versions(),
        "conditions": conditions,
        "figures": [figure.to_json() for figure in figures],
        **tables,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def machine() -> dict[str, Any]:
    """What it was measured on."""
    import mlx.core as mx

    from draftloop.runtime import blas

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 10**9),
        "device": str(mx.default_device()),
        "blas": blas.loaded(),
    }


def versions() -> dict[str, str]:
    """What it was measured with."""
    found = {name: version(name) for name in ("mlx", "mlx-lm", "numpy", "draftloop")}
    return {"python": platform.python_version(), **found}


def _processor() -> str:
    if platform.system() == "Darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True)
        return asked.stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
