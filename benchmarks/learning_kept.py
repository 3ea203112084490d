"""Runs of the learning benchmark in one file, so that hours of one machine are gone on with on another. Trains nothing.

What every run took and what it came to on the reported texts is in it, and the table can be made of it; weights and
texts are not. Runs of another edition, or on other texts than are made here, are left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parent / "results"


def file_of(name: str) -> Path:
    """Where the runs behind the results file of this name are kept."""
    return FOLDER / f"{name}_runs.jsonl"


def unpack(file: Path, folder: Path) -> None:
    """Put into the folder of an edition what is kept of it and is not there yet.

    Where the folder has no texts of a temperature yet, all that is kept of it is taken: a temperature whose runs are
    complete needs none any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for line in file.read_text().splitlines() if file.is_file() else ():
        kept = json.loads(line)
        path, temperature = folder / kept["name"], kept["temperature"]
        alike = not _file_of_texts(folder, temperature).is_file() or kept["texts"] == _texts(folder, temperature)
        if kept["edition"] == folder.name and alike and not path.is_file():
            path.write_text(json.dumps(kept["content"]))


def pack(file: Path, folder: Path, names: Mapping[str, float]) -> None:
    """Keep these files of an edition's folder, each of the temperature given, and nothing else."""
    lines = []
    for name, temperature in sorted(names.items()):
        about = {"edition": folder.name, "temperature": temperature, "texts": _texts(folder, temperature)}
        lines.append(json.dumps({**about, "name": name, "content": json.loads((folder / name).read_text())}))
    file.write_text("".join(f"{line}\n" for line in lines))


def _texts(folder: Path, temperature: float) -> str:
    """Differs where texts do: on another processor a token in a thousand may."""
    return hashlib.sha256(_file_of_texts(folder, temperature).read_bytes()).hexdigest()[:16]


def _file_of_texts(folder: Path, temperature: float) -> Path:
    return folder / f"texts-{temperature:g}.json"
