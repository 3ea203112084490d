"""What the learning benchmark is asked to do, from the command line: pair, recipes, how much of everything.

The embedded pair has the whole table by default, and `--main` has its first rows. Another pair has these rows alone,
and fewer and smaller runs, for on a CPU a step of a real model takes seconds.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import learning_report as report
from learning_jobs import Setup
from learning_recipes import RECIPES, WARMUP
from learning_world import Size

TEMPERATURE, OTHERS = 0.8, (0.0, 1.0)
CURVE = (20, 50, 100, 200, 500, 1_000)
MAIN = (report.BASELINE, "kl", report.OURS, report.BY_DEFAULT)
GRID = (5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)
OTHER_SETUP = Setup(size=Size(validation=40, replayed=50, reported=60), batch_size=8)
OTHER_FAILURES, DRAWN_FROM = 100, 2  # of another pair, and as many times as many that the seeds draw from


@dataclass(frozen=True)
class Scope:
    """Which runs are made.

    Attributes:
        recipes: their names.
        sizes: numbers of failures of the recipes on the curve.
        at: the number that rates are chosen at, and every recipe is measured at.
        temperatures: of the texts, `TEMPERATURE` first.
        seeds: of the runs.
        first, first_lower: two neighbours of the grid, where searches begin; those of cross-entropy begin lower.
    """

    recipes: tuple[str, ...] = MAIN
    sizes: tuple[int, ...] = ()
    at: int = report.AT
    temperatures: tuple[float, ...] = (TEMPERATURE,)
    seeds: tuple[int, ...] = (0, 1, 2)
    first: tuple[float, ...] = GRID[7:9]
    first_lower: tuple[float, ...] = GRID[1:3]

    def first_rates(self, recipe: str) -> Sequence[float]:
        """Where the search of a recipe begins; it goes outwards while the best rate lies at an end of those tried."""
        return self.first_lower if recipe.startswith((report.BASELINE, "ce")) else self.first


WHOLE = Scope((report.CEILING, *RECIPES), CURVE, temperatures=(TEMPERATURE, *OTHERS))  # what takes longest comes first
QUICK = Scope((report.BASELINE, report.OURS), (20,), at=50, seeds=(0,))
OTHER = Scope(at=OTHER_FAILURES, seeds=(0,), first=GRID[5:7], first_lower=GRID[3:5])


@dataclass(frozen=True)
class Request:
    """One call of the benchmark.

    Attributes:
        setup: what all runs share.
        scope: which they are.
        name: of the results file.
        folder: where everything is kept.
        processes: side by side.
        quick, time_again, keep_only: as the options say.
    """

    setup: Setup
    scope: Scope
    name: str
    folder: Path
    processes: int
    quick: bool
    time_again: bool
    keep_only: bool


def parse(arguments: Sequence[str] | None = None) -> Request:
    """From the command line.

    Raises:
        SystemExit: the options do not go together.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    # 1. The pair, and the scale that goes with it.
    if (options.target is None) != (options.draft is None):
        parser.error("--target and --draft go together")
    other = options.target is not None
    setup, scope = (OTHER_SETUP, OTHER) if other else (Setup(), Scope() if options.main else WHOLE)
    if other:
        setup = replace(setup, target=options.target, draft=options.draft)
    if options.quick:
        scope = replace(QUICK, first=scope.first, first_lower=scope.first_lower)
    # 2. What was asked for instead.
    size = {name: getattr(options, name) for name in ("tokens", "validation", "reported")}
    scope = replace(scope, at=options.failures or scope.at, seeds=tuple(range(options.seeds or len(scope.seeds))))
    if other:
        size["failures"] = DRAWN_FROM * max(scope.at, *scope.sizes, 0)
    setup = replace(
        setup,
        size=replace(setup.size, **{name: count for name, count in size.items() if count is not None}),
        steps=options.steps or setup.steps,
        batch_size=options.batch_size or setup.batch_size,
    )
    if setup.steps is not None and setup.steps <= WARMUP:
        parser.error(f"--steps {setup.steps}: expected more than the {WARMUP} in which mlx_lm.lora warms up")
    # 3. Where it goes.
    name = options.name or (None if other else "learning_main" if options.main else "learning")
    if name is None or not re.fullmatch(r"learning\w*", name):
        parser.error("another pair needs a results file of its own: --name learning_<pair>")
    some = (options.folder, options.processes, options.quick, options.time_again, options.keep_only)
    return Request(setup, scope, name, *some)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", help="name or directory of another pair's target (default: the embedded pair)")
    parser.add_argument("--draft", help="of its draft")
    parser.add_argument("--name", help="of the results file, learning_<pair>; needed for another pair")
    parser.add_argument("--main", action="store_true", help=f"only {', '.join(MAIN)}, at one number of failures")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "draftloop-learning")
    parser.add_argument("--processes", type=_count, default=2)
    parser.add_argument("--failures", type=_count, help=f"default: {report.AT}; another pair: {OTHER_FAILURES}")
    parser.add_argument("--tokens", type=_count, help=f"most of a text (default: {Size().tokens})")
    counts = {"validation": "texts that choices are made on", "reported": "texts of each domain that are reported on"}
    for name, what in counts.items():
        default, of_other = getattr(Size(), name), getattr(OTHER_SETUP.size, name)
        parser.add_argument(f"--{name}", type=_count, help=f"{what} (default: {default}; another pair: {of_other})")
    parser.add_argument(
        "--steps",
        type=_count,
        help="optimizer steps (default: as many as draftloop makes)",
    )
    parser.add_argument(
        "--batch-size",
        type=_count,
        help=f"texts a step (default: {Setup().batch_size}; another pair: {OTHER_SETUP.batch_size})",
    )
    parser.add_argument("--seeds", type=_count, help=f"how many (default: {len(WHOLE.seeds)}; another pair: 1)")
    parser.add_argument("--time-again", action="store_true", help="train one seed of each again, on an idle machine")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two small recipes to try the script; reports validation texts, and writes nothing",
    )
    parser.add_argument(
        "--keep-only", action="store_true", help="train nothing: score what was trained, and keep it in the runs' file"
    )
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number
