"""The table of faults: a row a fault, what its tests did, and how it ended. Knows no fault itself."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

PASSED, FAILED, MISSING = "passed", "failed", "MISSING"

ROWS = {
    "kill during a log append": "all complete records kept, at most the torn one lost, ten of ten new ones readable",
    "real SIGKILL of writers": "no acknowledged record lost, none twice",
    "kill while saving or promoting an adapter": "the champion always loads; the state is the old or the new",
    "kill during training": "bit-identical weights, optimizer, random state and order",
    "disk full, short write": "non-zero exit, a clear line, the earlier state byte-identical, the next run succeeds",
    "damage in the middle of a log": "all of it detected and reported by line number, the rest still read",
    "bad adapter bytes": "none loads where a hash or a header is wrong, none crashes",
    "two crons at once": "exactly one trains, the others say so and leave; a killed holder blocks nobody",
    "collect while training": "no torn read, nothing lost",
    "wrong pair": "refused before any generation, the first differing id named",
    "padded pair": "works; no token outside the shared ids is ever proposed or emitted",
    "NaN or Inf in loss or gradient": "weights and optimizer untouched by it; stops after a few; never promoted",
    "empty or fully masked batch": "loss 0, finite gradients, counted",
    "a worse candidate": "never promoted; at most 5% of null epochs promote anything; rollback byte-exact",
    "a harmful source cut into many names": "judged as the rest; promoted at most once in a hundred",
    "leakage": "no overlap of the splits; training works with the held-out records removed",
    "huge prompt": "skipped by the limit before tokenizing, named, memory flat; refused when it was the only one",
    "odd text": "token ids round-trip, no traceback",
    "YAML": "duplicates and unknown keys refused with the line; 1e-5 is a number",
    "names and paths": "refused by an allow-list, nothing touched outside the data directory",
    "old records": "read; a newer unknown schema is refused with a message",
    "clock goes backward": "no double retrain; order by sequence, not time",
    "the same prompt in other words": "90% joined, at most 2% of one template; near two splits: used in neither",
    "a model directory that wants to run code": "nothing runs, nothing asks; one line, exit 2",
    "kill -9 of a server that answers": "no captured record lost, none twice, none damaged; the next server serves",
    "a server on a full disk": "it answers on, counts what is not in the log, and captures again when there is room",
    "malformed requests": "OpenAI's error with a 4xx status, never a failure or a hang; the same answers afterwards",
    "clients that vanish": "their decoding ends and is recorded up to there, the next client is served",
    "slow readers": "others are served meanwhile, memory stays bounded, and who reads nothing is cut off",
    "two servers on one log": "both capture, no record lost, none twice, none damaged",
    "swaps under load": "no request fails, every greedy answer is plain mlx-lm's, and has one draft from end to end",
    "kill -9 of a server that learns": "the champion loads, nothing acknowledged lost, no version promoted twice",
}
"""Every fault and what must hold under it, in the order of the table."""


@dataclass
class Row:
    """One fault: a test asks it how much to do, and tells it what it did.

    Attributes:
        full: whether the table's own counts are asked for, not those of the ordinary run.
        counts: how many of each kind of thing were done, e.g. `cuts`.
        struck: by the name of a file operation, how many kills or failures struck it.
        times: seconds measured, by what took them. They are reported and never asserted.
        notes: what else the table should say.
    """

    name: str
    full: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)
    tests: Counter[str] = field(default_factory=Counter)

    def count(self, small: int, full: int) -> int:
        """How much to do: `small` in the ordinary run, `full` for the table."""
        return full if self.full else small

    def did(self, number: int, what: str) -> None:
        """So many of `what` were done, and it held each time."""
        self.counts[what] += number

    @property
    def result(self) -> str:
        """How the tests of this row ended; a row without a test that passed is missing."""
        if self.tests[FAILED]:
            return FAILED
        return PASSED if self.tests[PASSED] else MISSING

    def to_json(self) -> dict[str, Any]:
        """The row of the results file."""
        return {
            "row": self.name,
            "holds": ROWS[self.name],
            "result": self.result,
            "tests": self.tests.total(),
            "counts": dict(self.counts),
            "struck": dict(self.struck.most_common()),
            "seconds": {what: _summary(found) for what, found in self.times.items()},
            "notes": self.notes,
        }


class Table:
    """All rows, in their order."""

    def __init__(self, full: bool) -> None:
        self.full = full
        self.rows = {name: Row(name, full) for name in ROWS}

    def lines(self, everything: bool) -> list[str]:
        """The table for a terminal; `everything` lists rows that had no test, too."""
        shown = [row for row in self.rows.values() if everything or row.tests]
        return [line for row in shown for line in _lines(row.to_json())]


def _lines(row: dict[str, Any]) -> list[str]:
    counts = ", ".join(f"{number:,} {what}" for what, number in row["counts"].items()) or f"{row['tests']} tests"
    found = [f"{row['row']:<42} {row['result']:<8} {counts}"]
    if row["struck"]:
        found.append("    struck: " + ", ".join(f"{name} {number:,}" for name, number in row["struck"].items()))
    for what, seconds in row["seconds"].items():
        found.append(f"    {what}: median {seconds['median']:.3g} s, most {seconds['max']:.3g} s of {seconds['of']:,}")
    return found + [f"    {note}" for note in row["notes"]]


def _summary(seconds: list[float]) -> dict[str, Any]:
    return {"median": round(statistics.median(seconds), 6), "max": round(max(seconds), 6), "of": len(seconds)}
