"""What a data directory holds, counted from the log and the registry; no model is needed for it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from .registry import Registry
from .store.log import FailureLog


def overview(log: FailureLog, registry: Registry, min_failure_cases: int) -> dict[str, Any]:
    """Counts of generations and failures, splits, sources and versions, as plain values.

    Only failures of the `train` split can be trained on: they are new until a version was trained on them, then used.
    The others are held out. A generation that was logged twice counts once.
    """
    used: set[str] = set()
    for name in registry.versions():
        used.update(registry.manifest(name).record_ids)
    splits: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    seen: set[str] = set()
    for record in log.records():
        if record.id in seen:
            continue
        seen.add(record.id)
        splits[record.split] += 1
        sources[record.source] += 1
        if record.is_failure:
            state = "held_out" if record.split != "train" else "used" if record.id in used else "new"
            failures[state] += 1
    return {
        "generations": sum(splits.values()),
        "failures": sum(failures.values()),
        "failures_new": failures["new"],
        "failures_used": failures["used"],
        "failures_held_out": failures["held_out"],
        "min_failure_cases": min_failure_cases,
        "splits": dict(splits),
        "sources": dict(sources),
        "adapters": registry.versions(),
        "champion": registry.champion(),
        "previous": registry.previous(),
        "log": str(log.path),
        "log_bytes": log.path.stat().st_size if log.path.exists() else 0,
        "damage": [f"line {found.line_number}: {found.reason}" for found in log.damage],
    }
