"""How often the gate promotes what is no better, and what is: python benchmarks/gate.py [--quick]

Trains two adapters of the embedded pair alike but for the seed, scores both and the bare draft on the benchmark prompts
of both domains, and makes from those scores what `gate_worlds` and `gate_candidates` describe, and what `gate_looks`
does after a promotion. Epochs have five attempts each.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import argparse
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import results
from gate_candidates import FIRST, SECOND, on_sources, under_small_names, way_to
from gate_looks import NO_WORSE, false_rollbacks, rollbacks_of_a_loss
from gate_pool import PoolSettings, kept_pool
from gate_rates import COSTS, LOSSES, SETTINGS, epochs, let_through, power
from gate_report import CLEAR, HARMS, find_figures, picture, show
from gate_worlds import ATTEMPTS, BEYOND, NULLS, K, Pool, lopsidedness

from draftloop import reference
from draftloop.cli.progress import Steps
from draftloop.demo import LoopSettings

EFFECTS = (0.02, 0.05, 0.1, 0.2, 0.3)
SOURCES, PROMPTS = (1, 2, 4), (12, 30, 100, 400)  # prompts of each source
OTHERS = (0.0, -0.02, -0.05, -0.1)  # what every source but the first changes by
Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One row of one table: what to compute it with, and what to call it."""

    table: str
    compute: Callable[..., Row]
    arguments: tuple[Any, ...]
    said: Row


@dataclass(frozen=True)
class Size:
    """How much of everything: the pool of prompts; null epochs by prompts, and others; candidates and promotions a row.

    Rows with a bound have more: `clear` for gains, `bounded` for what is to be rare, `judged` for rollbacks.
    """

    pool: PoolSettings
    nulls: dict[int, int]
    beyond: int
    candidates: int
    clear: int
    bounded: int
    promotions: int
    judged: int


FULL = Size(
    PoolSettings(LoopSettings(weak_prompts=60, own_prompts=15, benchmark_prompts=1, max_tokens=64), texts=120),
    nulls={12: 10_000, 30: 1_000, 100: 1_000},
    beyond=500,
    candidates=200,
    clear=400,
    bounded=600,
    promotions=300,
    judged=2_000,
)
QUICK = Size(
    PoolSettings(
        LoopSettings(weak_prompts=14, own_prompts=2, benchmark_prompts=1, max_tokens=24), texts=16, training_epochs=2
    ),
    nulls={12: 100, 30: 20, 100: 20},
    beyond=20,
    candidates=10,
    clear=10,
    bounded=10,
    promotions=10,
    judged=10,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small run to try the script; writes no results")
    parser.add_argument("--pool", type=Path, help=".npz with the scores of the prompts; made where it is missing")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    with Steps() as steps:
        pool = kept_pool(options.pool, size.pool, options.seed, steps)
        tables = computed(list(tasks(size)), pool, options.seed, options.processes, steps)
    figures = list(find_figures(tables))
    if not options.quick:
        results.write("gate", find_conditions(pool, size, options.seed), figures, **tables)
        picture(tables["power"])
    show(figures, tables)


def tasks(size: Size) -> Iterator[Task]:
    """The rows of all tables."""
    for kind, prompts in product((*NULLS, *BEYOND), size.nulls):
        number = size.beyond if kind in BEYOND else size.nulls[prompts]
        yield Task("beyond" if kind in BEYOND else "nulls", epochs, (kind, prompts, number), {})
    for sources, prompts, effect, others in product(SOURCES, PROMPTS, EFFECTS, OTHERS):
        if _is_asked(sources, effect, others):
            number = _candidates(size, sources, prompts, effect, others)
            said = {"sources": sources, "prompts": prompts, "effect": effect, "others": others}
            yield Task("power", power, (on_sources(sources, prompts, effect, others), number), said)
    for prompts in (30, 100):
        yield Task("names", power, (under_small_names(prompts, CLEAR, CLEAR), size.bounded), {"prompts": prompts})
    for kind, prompts in product(LOSSES, PROMPTS):
        yield Task("let_through", let_through, (kind, prompts, size.bounded if prompts < 400 else size.clear), {})
    for kind, sources in product(NO_WORSE, SOURCES):
        number = size.judged if kind == "equal" else size.promotions
        yield Task("false_rollbacks", false_rollbacks, (kind, sources, number), {})
    for domain, sources in product((FIRST, SECOND), SOURCES):
        yield Task("rollbacks", rollbacks_of_a_loss, (domain, sources, size.judged), {})


def _is_asked(sources: int, effect: float, others: float) -> bool:
    """Every gain where no other source changes, every change of others at the clear gain; four sources there alone."""
    if sources == 1:
        return others == 0.0
    return effect == CLEAR or (sources == 2 and others == 0.0)


def _candidates(size: Size, sources: int, prompts: int, effect: float, others: float) -> int:
    """Most where a figure has a small bound; fewest where they take long and there is none."""
    if (sources, others) == (2, OTHERS[-1]) and prompts in HARMS:
        return size.bounded
    if sources * prompts > 1_000:
        return size.candidates // 2
    return size.clear if (effect, others) == (CLEAR, 0.0) and sources < 4 else size.candidates


def computed(found: list[Task], pool: Pool, seed: int, processes: int, steps: Steps) -> dict[str, list[Row]]:
    """The rows by table, in the order of the tasks whatever the number of processes."""
    tables: dict[str, list[Row]] = {task.table: [] for task in found}
    spawned = multiprocessing.get_context("spawn")  # a fork would copy the threads of MLX in no defined state
    with ProcessPoolExecutor(processes, spawned) as executor:
        rows = [executor.submit(task.compute, pool, *task.arguments, seed) for task in found]
        for done, (task, row) in enumerate(zip(found, rows, strict=True)):
            steps.at(f"simulating {task.table}", done, len(found))
            tables[task.table].append(task.said | row.result())
    return tables


def find_conditions(pool: Pool, size: Size, seed: int) -> dict[str, Any]:
    """What the numbers depend on."""
    lengths = {
        name: {
            domain: float(part.tokens.sum() / getattr(part, name)[:, K - 1].sum())
            for domain, part in ((domain, pool.of(i)) for i, domain in enumerate(reference.DOMAINS))
        }
        for name in ("base", "first", "second")
    }
    return {
        "pair": "embedded",
        "rule": "rejection",
        "temperature": 0.8,
        "num_draft_tokens": K,
        "gate": SETTINGS.model_dump(),
        "costs": asdict(COSTS),
        "attempts": ATTEMPTS,
        "pool": asdict(size.pool),
        "acceptance_lengths": lengths,
        "adapter_noise": noise(pool),
        "lopsidedness": {
            kind: asdict(lopsidedness(pool, one_source=one)) for kind, one in zip(BEYOND, (False, True), strict=True)
        },
        "way_to_the_adapters": {str(effect): way_to(pool.of(FIRST), effect) for effect in EFFECTS},
        "interval": "95% Clopper-Pearson; the worst null's is 99%",
        "seed": seed,
    }


def noise(pool: Pool) -> float:
    """Standard deviation over prompts of the two adapters' difference in rounds, as a share of a prompt's rounds."""
    first, second = pool.first[:, K - 1], pool.second[:, K - 1]
    return float(np.std((first - second) / ((first + second) / 2)))


if __name__ == "__main__":
    main()
