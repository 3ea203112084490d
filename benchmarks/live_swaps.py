"""What a server's memory grows by while it learns: python benchmarks/live_swaps.py

Twenty cycles of `draftloop serve --learn idle` on the embedded pair: prompts are answered and recorded, a short
training makes a version, the version is put into use (by the gate, else by the endpoint for that), and a few prompts
are answered with it. Then the server's memory is read, without what it maps from files. Its cache of prompts is small,
so that it is full from the first cycle on.
"""

from __future__ import annotations

import prepared  # noqa: F401

# isort: split
import argparse
import tempfile
from pathlib import Path

import results
import serving_world as world
from live_world import LiveServer, live_server
from results import Figure

from draftloop import reference
from draftloop.cli.tables import print_table
from draftloop.prompts.files import read_prompts

CYCLES, PROMPTS, TOKENS = 20, 24, 32
CACHE_MB, IDLE_MINUTES = 8, 0.02
SETTINGS = {
    "serve.admin": "true",
    "serve.prompt_cache_mb": CACHE_MB,
    "retrain.min_interval_minutes": 0,
    "training.learning_rate": 0.001,
    "training.epochs": 1,
    "training.answers": 0,
    "training.proposals": 0,
    "training.min_failure_cases": 4,
    "gate.looks": 0,  # a rollback would be a swap more
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three cycles, to try the script; writes no results")
    given = parser.parse_args()
    cycles = 3 if given.quick else CYCLES
    with tempfile.TemporaryDirectory(prefix="draftloop-swaps-") as folder:
        sizes = run(cycles, Path(folder))
    figures = [
        Figure("server after the first cycle", sizes[0], "MB"),
        Figure(f"growth over {cycles - 1} more", sizes[-1] - sizes[0], "MB", at_most=30),
        Figure("most above the first at any time", max(sizes) - sizes[0], "MB"),
    ]
    print_table(
        ["figure", "measured", "unit", "reached"],
        [[one.figure, f"{one.value:.1f}", one.unit, str(one.reached)] for one in figures],
    )
    if not given.quick:
        conditions = {"cycles": cycles, "prompts": PROMPTS, "tokens": TOKENS, "prompt_cache_mb": CACHE_MB}
        results.write("live_swaps", conditions, figures, sizes_mb=[round(size, 1) for size in sizes])


def run(cycles: int, folder: Path) -> list[float]:
    """MB of the server after each cycle."""
    domains = (reference.WEAK_DOMAIN, reference.OWN_DOMAIN)
    asked = [prompt.text for domain in domains for prompt in read_prompts(reference.prompts_file(domain, "collect"))]
    sizes = []
    with live_server(folder, IDLE_MINUTES, SETTINGS) as server:
        for cycle in range(cycles):
            one_cycle(server, asked[PROMPTS * cycle : PROMPTS * (cycle + 1)])
            sizes.append(world.own_megabytes(server.port))
    return sizes


def one_cycle(server: LiveServer, prompts: list[str]) -> None:
    """Serve, train and swap, and serve."""
    registry, swaps, trained = server.data.registry, server.swaps, server.data.registry.latest()
    server.ask(prompts, max_tokens=TOKENS)
    server.until(lambda: registry.latest() != trained and not server.has_child, "a version")
    version = registry.latest()
    assert version is not None
    if registry.champion() != version:
        server.put_into_use(version)
    server.until(lambda: server.swaps > swaps, "a swap")
    server.ask(prompts[: PROMPTS // 3], max_tokens=TOKENS, store=False)


if __name__ == "__main__":
    main()
