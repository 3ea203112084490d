"""What is learned from how many failures, by draftloop and by the field's recipes: python benchmarks/learning.py

On the embedded pair, three seeds; with --target and --draft on another one, and less of everything (--help). Every
recipe gets the same texts, matrices, rank, replay and optimizer steps, and the same grid of peak learning rates; the
rate is chosen on validation texts at one number of failures and temperature 0.8. What only takes a recipe apart is
trained once, at that recipe's rate. The reported texts are read once, by the runs that were chosen. Results are kept
run by run in --folder, so that a benchmark that was cut off goes on, under the edition of the code, the models and the
texts that they were made with, so that no other's are taken for them; and in results/<name>_runs.jsonl.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # two processes of one thread train more than one of two
os.environ.setdefault("MLX_DISABLE_COMPILE", "1")

import prepared  # noqa: F401

# isort: split
import json
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import learning_jobs as jobs
import learning_kept
import learning_options
import learning_report as report
from learning_jobs import Job, Setup, edition
from learning_options import GRID, TEMPERATURE, Request, Scope
from learning_report import Run

PARTS = {  # what takes ours apart, and whose rate it is trained at
    "lk, own text in 4 stages": "lk",
    "lk, new answers x 3": "lk",
    "kl, new answers x 3": "kl",
}
ON_THE_CURVE = ("mlx_lm.lora", "kl", "lk", "ours")  # at every number of failures, and at other temperatures
SEARCHED = 0  # the seed that rates are chosen with
MOST_SEARCHES = 64  # threads that only wait
TIMED = (report.BASELINE, report.OURS)  # the figure of seconds rests on all their seeds
DRAFTS_AT_ONCE = 16
T = TypeVar("T")


def main() -> None:
    request = learning_options.parse()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(request.processes, mp_context=context) as pool, ThreadPoolExecutor(MOST_SEARCHES) as many:
        folder = request.folder / edition(request.setup)
        work = Work(pool, request.setup, folder)
        print(f"results in {folder}", file=sys.stderr)
        kept = learning_kept.file_of(request.name)
        if request.keep_only:
            work.keep(kept, request.scope.at)
            return
        if not request.quick:
            learning_kept.unpack(kept, folder)
        work.prepare(request.scope)
        plan = Plan(work, many, request.scope)
        rates, chosen = carry_out(plan, request.scope)
        if request.time_again:
            work.do(timed_again(chosen, request.scope), again=True)
        runs = work.reported(chosen, blind=request.quick)
        if not request.quick:
            work.keep(kept, request.scope.at)
    figures = report.find_figures(runs, request.scope.at)
    report.show(runs, figures)
    if not request.quick:
        found = [[t, r, rate] for (t, r), rate in rates.items()]
        conditions = {**conditions_of(request), "learning_rates": found, "grid": GRID, "searches": plan.searches}
        report.write(request.name, runs, figures, conditions, request.scope.at)


def carry_out(plan: Plan, scope: Scope) -> tuple[dict[tuple[float, str], float | None], list[Job]]:
    """All runs of a scope, the ceiling's last, and the rates that were chosen."""
    for recipe in scope.recipes:
        plan.add(recipe, TEMPERATURE)
    plan.carried_out()  # so that what is asked for first is there first
    for temperature in scope.temperatures[1:]:
        for recipe in ON_THE_CURVE:
            plan.add(recipe, temperature)
    rates, chosen = plan.carried_out()
    return rates, sorted(chosen, key=lambda job: job.recipe == report.CEILING)  # the last row of the table


def timed_again(chosen: Sequence[Job], scope: Scope) -> list[Job]:
    """Of the runs at one number of failures, one seed of each recipe, and all seeds of those whose time is a figure."""
    some = [job for job in chosen if (job.temperature, job.failures) == (TEMPERATURE, scope.at)]
    wanted = [job for job in some if job.seed == scope.seeds[0] or job.recipe in TIMED]
    return [job for job in wanted if job.recipe != report.CEILING]


def conditions_of(request: Request) -> dict[str, Any]:
    """What the results file says of how it was measured."""
    setup, scope = request.setup, request.scope
    return {
        "pair": setup.pair,
        "processes": f"{request.processes} side by side, {os.environ['OPENBLAS_NUM_THREADS']} BLAS thread(s) each",
        "tokens": f"{setup.size.tokens} a text",
        "texts": asdict(setup.size),
        "failures": scope.at,
        "batch_size": setup.batch_size,
        "steps": setup.steps or "as many as draftloop makes",
        "seeds": scope.seeds,
        "edition": edition(setup),
    }


def settled(done: Mapping[Job, float], at: int) -> list[tuple[Job, bool]]:
    """Runs of the recipes whose search has come to its end, and whether they have the rate that it found.

    Args:
        done: runs, and the acceptance on the validation texts after each.
        at: the number of failures that rates are chosen at.
    """
    searches: dict[str, dict[float, float]] = {}
    for job, validation in done.items():
        searched = (job.temperature, job.failures, job.seed) == (TEMPERATURE, at, SEARCHED)
        if searched and job.learning_rate is not None and job.recipe not in PARTS:
            searches.setdefault(job.recipe, {})[job.learning_rate] = validation
    rates: dict[str, float | None] = {report.BY_DEFAULT: None}
    rates |= {recipe: max(tried, key=tried.__getitem__) for recipe, tried in searches.items() if not _outwards(tried)}
    recipes = {job: PARTS.get(job.recipe, job.recipe) for job in done}
    return [(job, job.learning_rate == rates[recipe]) for job, recipe in recipes.items() if recipe in rates]


class Work:
    """Jobs over processes; what was done before is not done again.

    Args:
        pool: of processes.
        setup: what all jobs share.
        folder: where texts, adapters and results are kept, of one edition.
    """

    def __init__(self, pool: ProcessPoolExecutor, setup: Setup, folder: Path) -> None:
        self._pool, self._setup, self._folder = pool, setup, folder

    def prepare(self, scope: Scope) -> None:
        """Make the texts, before two processes would make the same."""
        making = [self._submit(jobs.prepare, temperature, self._folder) for temperature in scope.temperatures]
        making[0].result()
        if report.CEILING in scope.recipes:
            making.append(self._submit(jobs.prepare_ceiling, TEMPERATURE, self._folder))
        for made in making:
            made.result()

    def do(self, some: Sequence[Job], *, again: bool = False) -> list[dict[str, Any]]:
        """Train all of them, those too that were done before if `again`; returns what each took, in their order."""
        missing = [job for job in some if again or not self._result(job).is_file()]
        for trained in [self._submit(jobs.train, job, self._folder) for job in missing]:
            print(trained.result(), file=sys.stderr)
        return [json.loads(self._result(job).read_text()) for job in some]

    def reported(self, chosen: Sequence[Job], *, blind: bool) -> list[Run]:
        """The chosen runs on the reported texts; where `blind`, on texts of validation and replay in their place."""
        self.score(chosen, blind=blind)
        runs = []
        for job, found in zip(chosen, self.do(chosen), strict=True):
            took = {name: found[name] for name in ("openings", "steps", "seconds", "peak_mb", "curve", "last")}
            files = (jobs.scores_file(self._folder, scored, blind) for scored in (job.bare, job))
            before, after = (json.loads(file.read_text())["accepted"] for file in files)
            about = asdict(job) | {"learning_rate": found["rate"]}
            runs.append(Run(**about, **took, base=before, trained=after))
        return runs

    def score(self, trained: Sequence[Job], *, blind: bool) -> None:
        """Score on the reported texts what was not yet, several drafts after each reading of the target."""
        parts = []
        for temperature in {job.temperature for job in trained}:
            some = [job for job in trained if job.temperature == temperature]
            missing = [j for j in [some[0].bare, *some] if not jobs.scores_file(self._folder, j, blind).is_file()]
            parts += [missing[start : start + DRAFTS_AT_ONCE] for start in range(0, len(missing), DRAFTS_AT_ONCE)]
        for scored in [self._submit(jobs.score_reported, part, self._folder, blind) for part in parts]:
            scored.result()

    def keep(self, file: Path, at: int) -> None:
        """Score what was trained at its recipe's rate, which was chosen at so many failures, and keep it in a file."""
        everything = [json.loads(path.read_text()) for path in self._folder.glob("*.json")]
        found = settled({Job(**one["job"]): one["validation"] for one in everything if "job" in one}, at)
        chosen = [job for job, at_its_rate in found if at_its_rate]
        self.score(chosen, blind=False)
        names = {self._result(job).name: job.temperature for job, _ in found}
        for job in [*chosen, *{job.bare for job in chosen}]:
            names[jobs.scores_file(self._folder, job, blind=False).name] = job.temperature
        learning_kept.pack(file, self._folder, names)

    def _submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        return self._pool.submit(work, self._setup, *arguments)

    def _result(self, job: Job) -> Path:
        return self._folder / f"{job.name}.json"


class Plan:
    """Every recipe's search for its rate, and its runs at that rate; all at once, so that no process waits.

    Args:
        work: does them.
        threads: to wait in.
        scope: which runs are made.

    Attributes:
        searches: of each recipe, the rates tried and the acceptance on the validation texts with each.
    """

    def __init__(self, work: Work, threads: ThreadPoolExecutor, scope: Scope) -> None:
        self._work, self._threads, self._scope = work, threads, scope
        self._chosen: dict[tuple[float, str], Future[float | None]] = {}
        self._trained: list[Future[list[Job]]] = []
        self.searches: dict[str, dict[float, float]] = {}

    def add(self, recipe: str, temperature: float) -> None:
        """Begin with a recipe on texts of a temperature: its rate is the one found at `TEMPERATURE`."""
        if recipe in PARTS:
            found = self._chosen[TEMPERATURE, PARTS[recipe]]
        elif temperature != TEMPERATURE:
            found = self._chosen[TEMPERATURE, recipe]
        else:
            found = self._threads.submit(self._search, recipe)
        self._chosen[temperature, recipe] = found
        self._trained.append(self._threads.submit(self._train, recipe, temperature))

    def carried_out(self) -> tuple[dict[tuple[float, str], float | None], list[Job]]:
        """The chosen rate of each temperature and recipe, and all runs at these, when they are done."""
        done = [job for trained in self._trained for job in trained.result()]
        return {key: found.result() for key, found in self._chosen.items()}, done

    def _search(self, recipe: str) -> float | None:
        """The rate of the grid with the highest acceptance on the validation texts; None is the trainer's default."""
        if recipe == report.BY_DEFAULT:
            return None
        tried = self.searches[recipe] = {}
        rates = self._scope.first_rates(recipe)
        while rates:
            done = self._work.do([Job(TEMPERATURE, recipe, self._scope.at, SEARCHED, rate) for rate in rates])
            tried.update((rate, found["validation"]) for rate, found in zip(rates, done, strict=True))
            rates = _outwards(tried)
        return max(tried, key=tried.__getitem__)

    def _train(self, recipe: str, temperature: float) -> list[Job]:
        rate, scope = self._chosen[temperature, recipe].result(), self._scope
        curve = temperature == TEMPERATURE and recipe in ON_THE_CURVE
        sizes = [scope.at, *(size for size in scope.sizes if size != scope.at)] if curve else [scope.at]
        seeds = scope.seeds[:1] if recipe in PARTS else scope.seeds
        chosen = [Job(temperature, recipe, size, seed, rate) for size in sizes for seed in seeds]
        self._work.do(chosen)
        return chosen


def _outwards(found: Mapping[float, float]) -> Sequence[float]:
    """The next rate of the grid beyond the best one, where that lies at an end of those tried."""
    best = GRID.index(max(found, key=lambda rate: found[rate]))
    around = [GRID[i] for i in (best - 1, best + 1) if 0 <= i < len(GRID)]
    return [rate for rate in around if rate not in found]


if __name__ == "__main__":
    main()
