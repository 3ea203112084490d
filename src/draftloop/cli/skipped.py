"""What was skipped of many prompts, on stderr: the first ones with their reasons, all others by where they stand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from .app import note

IN_FULL = 20
_PLACED = re.compile(r"(?P<file>.*?), (?P<kind>line|item|answer) (?P<place>\w+)[: ]")


def say_skipped(skipped: list[str]) -> None:
    """Name each: lines of `CollectReport.skipped_prompts`."""
    for line in skipped[:IN_FULL]:
        note(f"skipped: {line}")
    for line in grouped(skipped[IN_FULL:]):
        note(f"skipped too: {line}")


def grouped(skipped: Iterable[str]) -> Iterator[str]:
    """By file, in order; what stands in none by itself."""
    places: dict[tuple[str, str], list[str]] = {}
    for line in skipped:
        found = _PLACED.match(line)
        if found is None:
            yield line
        else:
            places.setdefault((found["file"], found["kind"]), []).append(found["place"])
    for (file, kind), of_file in places.items():
        yield f"{file}, {kind}s {', '.join(of_file)}"
