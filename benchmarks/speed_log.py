"""The failure log at 100,000 records: python benchmarks/speed_log.py [--records N]

Records of 64 tokens are appended in groups, every group on disk before the next; then each thing that is done with a
log is done once, in a process of its own, whose peak memory is the figure.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import results

from draftloop.data.log import FailureLog
from draftloop.data.records import Disagreement, PairId, Record, Sampler

RECORDS, GROUP, TOKENS, PROMPT, K = 100_000, 64, 64, 24, 4
TEMPLATES = 512  # records that differ in all; the others differ from one of these in prompt and id
APPENDS, MEGABYTES = 5_000, 200
_TEMPLATE_PAIR = PairId("a" * 64, "b" * 64, "c" * 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=RECORDS, help="writes no results unless it is the default")
    parser.add_argument("--quick", action="store_const", dest="records", const=2_000, help="2,000 records")
    parser.add_argument("--do", choices=tuple(OPERATIONS), help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        _in_a_process_of_its_own(options.do, options.log)
        return
    count = options.records
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "failures.jsonl"
        rates = _append(FailureLog(path), count)
        size = path.stat().st_size
        rows = [_measured(name, path) for name in OPERATIONS]
    peak = max(row["peak_mb"] for row in rows)
    print(f"{count:,} records of {TOKENS} tokens, {size / 1e6:,.0f} MB, groups of {GROUP}")
    for row in rows:
        print(f"  {row['what']:<32} {row['seconds']:8.2f} s {row['peak_mb']:8.1f} MB")
    print(f"  durable appends a second: {statistics.median(rates):,.0f} (lowest tenth {np.quantile(rates, 0.1):,.0f})")
    figures = [
        results.Figure("peak memory of the largest pass over the log", peak, "MB", at_most=MEGABYTES),
        results.Figure("durable appends in groups", statistics.median(rates), "1/s", at_least=APPENDS),
    ]
    if count == RECORDS:
        conditions = {"records": count, "tokens": TOKENS, "group": GROUP, "bytes": size}
        results.write("speed_log", conditions, figures, operations=rows)


def _append(log: FailureLog, count: int) -> list[float]:
    """Records a second of every twentieth of the log, made beforehand."""
    templates = _templates()
    rates = []
    for part in np.array_split(np.arange(count), 20):
        records = [_record(templates, int(i)) for i in part]
        began = time.perf_counter()
        for start in range(0, len(records), GROUP):
            log.extend(records[start : start + GROUP])
        rates.append(len(records) / (time.perf_counter() - began))
    return rates


def _record(templates: list[Record], number: int) -> Record:
    return replace(
        templates[number % TEMPLATES],
        id=f"{number:032x}",
        prompt=f"Write a few sentences about {_word(number)} and what {_word(number // 7)} has to do with it.",
        prompt_tokens=(number % 2048, *range(PROMPT - 1)),
    )


def _word(number: int) -> str:
    """Letters alone: prompts that differ in digits are of one group."""
    return "".join(chr(97 + int(digit)) for digit in str(number))


def _templates() -> list[Record]:
    random = np.random.default_rng(0)
    return [_template(random, number) for number in range(TEMPLATES)]


def _template(random: np.random.Generator, number: int) -> Record:
    """A generation in which two of three proposals are kept."""
    output = tuple(random.integers(0, 2048, TOKENS).tolist())
    draft, rounds, refused = list(output), [], []
    log_p, log_q = (tuple((-random.exponential(2.0, TOKENS)).tolist()) for _ in range(2))
    at = 0
    while at < TOKENS:
        drafted = min(K, TOKENS - at)
        accepted = min(int(random.geometric(1 / 3)) - 1, drafted)
        rounds.append((drafted, accepted))
        here = at + accepted
        if accepted < drafted:
            draft[here] = (output[here] + 1) % 2048
            refused.append(Disagreement(here, draft[here], output[here], -3.0, -0.5, log_p[here], log_q[here]))
        at = here + 1
    return Record(
        id=f"{number:032x}",
        prompt="",
        prompt_tokens=(),
        draft_output=tuple(draft),
        target_output=output,
        disagreements=tuple(refused),
        sampler=Sampler(0.8, 1.0, 0.0, 0, number),
        rule="rejection",
        num_draft_tokens=K,
        rounds=tuple(rounds),
        log_p=log_p,
        log_q=log_q,
        finish="length",
        pair=_TEMPLATE_PAIR,
        adapter=None,
        split="train",
        source=("prose", "code")[number % 2],
        time=1_760_000_000.0,
        run_seed=0,
    )


def _open(path: Path) -> int:
    """What the first append of a process begins with."""
    FailureLog(path).repair()
    return 0


def _count(path: Path) -> int:
    return sum(record.is_failure for record in FailureLog(path).records())


def _iterate(path: Path) -> int:
    return sum(len(record.target_output) for record in FailureLog(path).records())


def _split(path: Path) -> int:
    return sum(1 for _ in FailureLog(path).records({"heldout"}))


def _resume(path: Path) -> int:
    return len(FailureLog(path).resume_keys())


def _sample(path: Path) -> int:
    from draftloop.config import Data
    from draftloop.data.replay import ReplayBuffer

    log = FailureLog(path)
    with tempfile.TemporaryDirectory() as folder:
        return len(ReplayBuffer(Path(folder), Data().replay_capacity).refresh(lambda: log.records({"train"}), seed=0))


def _repair(path: Path) -> int:
    """A tail that a crash tore, and a line damaged in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\0")
        file.seek(0, 2)
        file.write(b'{"a torn":')
    log = FailureLog(path)
    log.repair()
    return sum(1 for _ in log.records()) + len(log.damage)


OPERATIONS: dict[str, Callable[[Path], int]] = {
    "open": _open,
    "count": _count,
    "iterate": _iterate,
    "split": _split,
    "resume": _resume,
    "sample": _sample,
    "repair": _repair,
}


def _in_a_process_of_its_own(name: str, path: Path) -> None:
    began = time.perf_counter()
    found = OPERATIONS[name](path)
    seconds = time.perf_counter() - began
    print(seconds, _peak_bytes() / 1e6, found)


def _peak_bytes() -> int:
    """The most memory that this process had; Linux's ru_maxrss would count the parent's too."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _measured(name: str, path: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--do", name, "--log", str(path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {"what": name, "seconds": float(told[0]), "peak_mb": float(told[1]), "found": int(told[2])}


if __name__ == "__main__":
    main()
