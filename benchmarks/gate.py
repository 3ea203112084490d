"""How often the gate promotes what is no better, and what is: python benchmarks/gate.py [--quick]

Trains two adapters of the embedded pair alike but for the seed, scores both and the bare draft on the benchmark prompts
of both domains, and makes from those scores what `gate_worlds` describes. Epochs have five attempts each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import plots
import results
from gate_pool import PoolSettings, measured_pool
from gate_rates import COSTS, SETTINGS, epochs, power
from gate_worlds import ATTEMPTS, BEYOND, NULLS, K, Pool, Second, lopsidedness, way_to
from matplotlib.axes import Axes
from render import SECOND_SOURCES, percent
from results import Figure

from draftloop import reference
from draftloop.cli.progress import Steps
from draftloop.cli.tables import print_table
from draftloop.demo import LoopSettings

EFFECTS = (0.02, 0.05, 0.1, 0.2, 0.3)
POWER_PROMPTS: dict[Second, tuple[int, ...]] = {
    "none": (12, 30, 100),
    "unchanged": (12, 30, 100, 400),
    "loses": (12, 30, 100),
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much of everything: the pool of prompts, epochs by prompts, candidates an effect."""

    pool: PoolSettings
    epochs: dict[int, int]
    candidates: int


FULL = Size(
    PoolSettings(LoopSettings(weak_prompts=60, own_prompts=15, benchmark_prompts=1, max_tokens=64), texts=120),
    epochs={12: 10_000, 30: 1_000, 100: 1_000},  # at 12 no source is judged: the test alone decides, near its level
    candidates=400,
)
QUICK = Size(
    PoolSettings(
        LoopSettings(weak_prompts=14, own_prompts=2, benchmark_prompts=1, max_tokens=24), texts=16, training_epochs=2
    ),
    epochs={12: 200, 30: 100, 100: 40},
    candidates=20,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a small run to try the script; writes no results")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    with Steps() as steps:
        pool = measured_pool(size.pool, options.seed, steps)
        nulls, beyond = (
            [
                {"kind": kind} | epochs(world, pool, prompts, number, options.seed, told(steps, kind, number, prompts))
                for kind, world in worlds.items()
                for prompts, number in size.epochs.items()
            ]
            for worlds in (NULLS, BEYOND)
        )
        powers = list(power_rows(pool, size, options.seed, steps))
    figures = list(find_figures(nulls))
    show(figures, nulls, beyond, powers)
    if not options.quick:
        conditions = find_conditions(pool, size, options.seed)
        results.write("gate", conditions, figures, nulls=nulls, beyond=beyond, power=powers)
        picture(powers)


def told(steps: Steps, what: str, of: int, prompts: int) -> Any:
    """A listener that shows progress."""
    return lambda done: steps.at(f"{what}, {prompts} prompts", done, of)


def power_rows(pool: Pool, size: Size, seed: int, steps: Steps) -> Iterator[Row]:
    """Whatever a second source does, for every number of prompts and every effect on the first."""
    for second, numbers in POWER_PROMPTS.items():
        for prompts, effect in product(numbers, EFFECTS):
            listener = told(steps, f"{effect:+g}, second source {second}", size.candidates, prompts)
            yield power(pool, prompts, second, effect, size.candidates, seed, listener)


def find_figures(nulls: list[Row]) -> Iterator[Figure]:
    """The worst kind of null for every number of prompts."""
    for prompts in dict.fromkeys(row["prompts"] for row in nulls):
        worst = max((row for row in nulls if row["prompts"] == prompts), key=lambda row: row["gate"]["share"])
        interval = f"{100 * worst['gate']['low']:.1f} to {100 * worst['gate']['high']:.1f}"
        name = f"epochs without a better candidate that promote one, {prompts} prompts, worst null ({worst['kind']})"
        yield Figure(name, 100 * worst["gate"]["share"], f"%, 95% interval {interval}", at_most=100 * SETTINGS.alpha)


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
        "way_to_the_adapters": {str(effect): way_to(pool.of(0), effect) for effect in EFFECTS},
        "interval": "95% Clopper-Pearson",
        "seed": seed,
    }


def noise(pool: Pool) -> float:
    """Standard deviation over prompts of the two adapters' difference in rounds, as a share of a prompt's rounds."""
    first, second = pool.first[:, K - 1], pool.second[:, K - 1]
    return float(np.std((first - second) / ((first + second) / 2)))


def show(figures: list[Figure], nulls: list[Row], beyond: list[Row], powers: list[Row]) -> None:
    """Everything on the terminal."""
    print_table(
        ["figure", "measured", "bound", "unit", "reached"],
        [[f.figure, f.value, f"<= {f.at_most:g}", f.unit, "yes" if f.reached else "NO"] for f in figures],
    )
    for title, rows in (("nulls", nulls), ("beyond the null", beyond)):
        print_table(
            ["kind", "prompts", "epochs", "test alone", "gate"],
            [[r["kind"], r["prompts"], r["epochs"], percent(r["test"]), percent(r["gate"])] for r in rows],
            title=title,
        )
    names = ("test_1", "gate_1", "test_5", "gate_5")
    print_table(
        ["second source", "prompts", "effect", *names],
        [[r["second"], r["prompts"], r["effect"], *(percent(r[name]) for name in names)] for r in powers],
        title="power: test alone and gate, at attempts 1 and 5",
    )


def picture(powers: list[Row]) -> Path:
    """Power by effect: the gate as it is, and its test alone."""
    figure, axes = plots.panels(len(SECOND_SOURCES), width=9.0)
    colours = dict(zip(dict.fromkeys(sorted(row["prompts"] for row in powers)), plots.COLOURS, strict=False))
    for axis, (second, title) in zip(axes, SECOND_SOURCES.items(), strict=True):
        for prompts, colour in colours.items():
            rows = [row for row in powers if (row["second"], row["prompts"]) == (second, prompts)]
            draw_power(axis, rows, colour)
        axis.set(title=title, xlabel="true gain on the first, tokens a round", ylim=(-0.03, 1.03))
    for prompts, colour in colours.items():
        axes[0].plot([], [], color=colour, marker="o", ms=4, label=f"{prompts} prompts")
    axes[0].plot([], [], color=plots.GREY, ls=":", label="test alone")
    axes[0].set_ylabel("promoted at the first attempt")
    axes[0].legend(loc="lower right")
    return plots.save(figure, "gate-power")


def draw_power(axis: Axes, rows: list[Row], colour: str) -> None:
    """One number of prompts: the gate with its intervals, and the test alone, dotted."""
    effects, shares = [row["effect"] for row in rows], [row["gate_1"]["share"] for row in rows]
    ends = [[abs(row["gate_1"][end] - row["gate_1"]["share"]) for row in rows] for end in ("low", "high")]
    axis.errorbar(effects, shares, ends, color=colour, marker="o", ms=4, capsize=2)
    axis.plot(effects, [row["test_1"]["share"] for row in rows], color=colour, ls=":")


if __name__ == "__main__":
    main()
