"""What is learned from how many failures, by draftloop and by the field's recipes: python benchmarks/learning.py

On the embedded pair, three seeds. Every recipe gets the same texts, matrices, rank, replay and optimizer steps, and the
same grid of peak learning rates; the rate is chosen on validation texts at 200 failures and temperature 0.8. What only
takes a recipe apart is trained once, at that recipe's rate. The reported texts are read once, by the runs that were
chosen. Results are kept run by run in --folder, so that a benchmark that was cut off goes on, under the edition of the
code and the texts that they were made with, so that no other's are taken for them; and in results/learning_runs.jsonl.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # two processes of one thread train more than one of two
os.environ.setdefault("MLX_DISABLE_COMPILE", "1")

import learning_kept
import learning_report as report
from learning_report import Run

import draftloop  # before MLX, in every process: it puts a fast BLAS under it

CURVE = (20, 50, 100, 200, 500, 1_000)
SEEDS = (0, 1, 2)
AT = report.AT
MAIN = ("mlx_lm.lora", "kl", "lk", "ours")
GRID = (5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)
FIRST_RATES = GRID[7:9]  # from there on outwards, for as long as the best one lies at an end of those tried
LOWER_RATES = GRID[1:3]  # where searches of cross-entropy begin
PARTS = {  # what takes ours apart, and whose rate it is trained at
    "lk, own text in 4 stages": "lk",
    "lk, new answers x 3": "lk",
    "kl, new answers x 3": "kl",
}
MOST_SEARCHES = 64  # threads that only wait
TEMPERATURE, OTHERS = 0.8, (0.0, 1.0)
TIMED = (report.BASELINE, report.OURS)  # the figure of seconds rests on all their seeds
CEILING_STEPS = 2_500
BARE = "none"
DRAFTS_AT_ONCE = 16


@dataclass(frozen=True)
class Job:
    """One training: what, from how much, and how."""

    temperature: float
    recipe: str
    failures: int
    seed: int
    learning_rate: float

    @property
    def name(self) -> str:
        """Of its files."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:8]
        return f"{self.recipe.split(',')[0].replace(' ', '-')}-{self.failures}-{self.seed}-{digest}"

    @property
    def bare(self) -> Job:
        """What its gain is over: no training at all."""
        return Job(self.temperature, BARE, 0, 0, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "draftloop-learning")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--time-again", action="store_true", help="one seed of each at 200 failures, or three, on an idle machine"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two small recipes to try the script; reports validation texts, and writes nothing",
    )
    parser.add_argument(
        "--keep-only", action="store_true", help="train nothing: score what was trained, and keep it in the runs' file"
    )
    options = parser.parse_args()
    recipes = ["mlx_lm.lora", "ours"] if options.quick else all_recipes()
    sizes, at, seeds = ((20, 50), 50, (0,)) if options.quick else (CURVE, AT, SEEDS)
    temperatures = (TEMPERATURE,) if options.quick else (TEMPERATURE, *OTHERS)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool, ThreadPoolExecutor(MOST_SEARCHES) as many:
        folder = options.folder / edition()
        work = Work(pool, folder)
        print(f"results in {folder}", file=sys.stderr)
        if options.keep_only:
            work.keep()
            return
        if not options.quick:
            learning_kept.unpack(learning_kept.FILE, folder)
        work.prepare(temperatures)
        plan = Plan(work, many, sizes, at, seeds)
        if not options.quick:
            plan.add(report.CEILING, TEMPERATURE, FIRST_RATES)  # first, because it takes longest
        for recipe in recipes:
            plan.add(recipe, TEMPERATURE, LOWER_RATES if recipe.startswith((report.BASELINE, "ce")) else FIRST_RATES)
        plan.carried_out()  # so that what is asked for first is there first
        for temperature in temperatures[1:]:
            for recipe in MAIN:
                plan.add(recipe, temperature)
        rates, jobs = plan.carried_out()
        jobs.sort(key=lambda job: job.recipe == report.CEILING)  # the last row of the table
        if options.time_again:
            some = [job for job in jobs if (job.temperature, job.failures) == (TEMPERATURE, at)]
            wanted = [job for job in some if job.seed == seeds[0] or job.recipe in TIMED]
            work.do([job for job in wanted if job.recipe != report.CEILING], again=True)
        runs = work.reported(jobs, blind=options.quick)
        if not options.quick:
            work.keep()
    figures = report.find_figures(runs, at)
    report.show(runs, figures)
    if not options.quick:
        from learning_world import TOKENS

        chosen = [[t, r, rate] for (t, r), rate in rates.items()]
        about = {"learning_rates": chosen, "grid": GRID, "searches": plan.searches, "edition": edition()}
        report.write(runs, figures, {"tokens": f"{TOKENS} a text", **about})


@cache
def edition() -> str:
    """Changes with all that a result depends on: the package, the recipes, the texts, and the libraries."""
    here, package = Path(__file__).parent, Path(str(draftloop.__file__)).parent
    sources = [here / "learning_recipes.py", here / "learning_world.py", *sorted(package.rglob("*.py"))]
    sources += sorted(package.rglob("*.safetensors"))
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sources))
    digest.update(json.dumps([CEILING_STEPS, version("mlx"), version("mlx-lm")]).encode())
    return digest.hexdigest()[:8]


def settled(done: Mapping[Job, float]) -> list[tuple[Job, bool]]:
    """Runs of the recipes whose search has come to its end, and whether they have the rate that it found.

    Args:
        done: runs, and the acceptance on the validation texts after each.
    """
    searches: dict[str, dict[float, float]] = {}
    for job, validation in done.items():
        if (job.temperature, job.failures, job.seed) == (TEMPERATURE, AT, SEEDS[0]) and job.recipe not in PARTS:
            searches.setdefault(job.recipe, {})[job.learning_rate] = validation
    rates = {recipe: max(tried, key=tried.__getitem__) for recipe, tried in searches.items() if not _outwards(tried)}
    found = {job: rates.get(PARTS.get(job.recipe, job.recipe)) for job in done}
    return [(job, job.learning_rate == rate) for job, rate in found.items() if rate is not None]


def all_recipes() -> list[str]:
    """Their names, the main ones first."""
    from learning_recipes import RECIPES

    return list(RECIPES)


class Work:
    """Jobs over processes; what was done before is not done again.

    Args:
        pool: of processes.
        folder: where texts, adapters and results are kept, of one edition.
    """

    def __init__(self, pool: ProcessPoolExecutor, folder: Path) -> None:
        self._pool, self._folder = pool, folder

    def prepare(self, temperatures: Iterable[float]) -> None:
        """Make the texts, before two processes would make the same."""
        making = [self._pool.submit(prepare, temperature, self._folder) for temperature in temperatures]
        making[0].result()
        for made in [*making, self._pool.submit(prepare_ceiling, TEMPERATURE, self._folder)]:
            made.result()

    def do(self, jobs: Sequence[Job], *, again: bool = False) -> list[dict[str, Any]]:
        """Train all of them, those too that were done before if `again`; returns what each took, in their order."""
        missing = [job for job in jobs if again or not self._result(job).is_file()]
        for trained in [self._pool.submit(train, job, self._folder) for job in missing]:
            print(trained.result(), file=sys.stderr)
        return [json.loads(self._result(job).read_text()) for job in jobs]

    def reported(self, jobs: Sequence[Job], *, blind: bool) -> list[Run]:
        """The chosen runs on the reported texts; where `blind`, on texts of validation and replay in their place."""
        self.score(jobs, blind=blind)
        runs = []
        for job, found in zip(jobs, self.do(jobs), strict=True):
            took = {name: found[name] for name in ("openings", "steps", "seconds", "peak_mb", "curve", "last")}
            before, after = (
                json.loads(_scores(self._folder, one, blind).read_text())["accepted"] for one in (job.bare, job)
            )
            runs.append(Run(**asdict(job), **took, base=before, trained=after))
        return runs

    def score(self, jobs: Sequence[Job], *, blind: bool) -> None:
        """Score on the reported texts what was not yet, several drafts after each reading of the target."""
        parts = []
        for temperature in {job.temperature for job in jobs}:
            some = [job for job in jobs if job.temperature == temperature]
            missing = [job for job in [some[0].bare, *some] if not _scores(self._folder, job, blind).is_file()]
            parts += [missing[start : start + DRAFTS_AT_ONCE] for start in range(0, len(missing), DRAFTS_AT_ONCE)]
        for scored in [self._pool.submit(score_reported, part, self._folder, blind) for part in parts]:
            scored.result()

    def keep(self) -> None:
        """Score what was trained at its recipe's rate, and keep it in the runs' file."""
        everything = [json.loads(path.read_text()) for path in self._folder.glob("*.json")]
        found = settled({Job(**one["job"]): one["validation"] for one in everything if "job" in one})
        chosen = [job for job, at_its_rate in found if at_its_rate]
        self.score(chosen, blind=False)
        names = {self._result(job).name: job.temperature for job, _ in found}
        for job in [*chosen, *{job.bare for job in chosen}]:
            names[_scores(self._folder, job, blind=False).name] = job.temperature
        learning_kept.pack(learning_kept.FILE, self._folder, names)

    def _result(self, job: Job) -> Path:
        return self._folder / f"{job.name}.json"


class Plan:
    """Every recipe's search for its rate, and its runs at that rate; all at once, so that no process waits.

    Args:
        work: does them.
        threads: to wait in.
        sizes: numbers of failures, of the main recipes.
        at: the number that rates are chosen at.
        seeds: of the runs.

    Attributes:
        searches: of each recipe, the rates tried and the acceptance on the validation texts with each.
    """

    def __init__(
        self, work: Work, threads: ThreadPoolExecutor, sizes: Sequence[int], at: int, seeds: Sequence[int]
    ) -> None:
        self._work, self._threads = work, threads
        self._sizes, self._at, self._seeds = sizes, at, seeds
        self._chosen: dict[tuple[float, str], Future[float]] = {}
        self._trained: list[Future[list[Job]]] = []
        self.searches: dict[str, dict[float, float]] = {}

    def add(self, recipe: str, temperature: float, rates: Sequence[float] = ()) -> None:
        """Begin with a recipe.

        Args:
            recipe: its name.
            temperature: of the texts.
            rates: where its search begins, at `TEMPERATURE`; at others it has the rate that was found there.
        """
        if recipe in PARTS:
            found = self._chosen[TEMPERATURE, PARTS[recipe]]
        elif temperature != TEMPERATURE:
            found = self._chosen[TEMPERATURE, recipe]
        else:
            found = self._threads.submit(self._search, recipe, rates)
        self._chosen[temperature, recipe] = found
        self._trained.append(self._threads.submit(self._train, recipe, temperature))

    def carried_out(self) -> tuple[dict[tuple[float, str], float], list[Job]]:
        """The chosen rate of each temperature and recipe, and all runs at these, when they are done."""
        jobs = [job for trained in self._trained for job in trained.result()]
        return {key: found.result() for key, found in self._chosen.items()}, jobs

    def _search(self, recipe: str, rates: Sequence[float]) -> float:
        """The rate of the grid with the highest acceptance on the validation texts."""
        tried = self.searches[recipe] = {}
        while rates:
            jobs = [Job(TEMPERATURE, recipe, self._at, 0, rate) for rate in rates]
            for job, found in zip(jobs, self._work.do(jobs), strict=True):
                tried[job.learning_rate] = found["validation"]
            rates = _outwards(tried)
        return max(tried, key=lambda rate: tried[rate])

    def _train(self, recipe: str, temperature: float) -> list[Job]:
        rate = self._chosen[temperature, recipe].result()
        curve = temperature == TEMPERATURE and recipe in MAIN
        sizes = [self._at, *(size for size in self._sizes if size != self._at)] if curve else [self._at]
        seeds = self._seeds[:1] if recipe in PARTS else self._seeds
        jobs = [Job(temperature, recipe, size, seed, rate) for size in sizes for seed in seeds]
        self._work.do(jobs)
        return jobs


def _outwards(found: Mapping[float, float]) -> Sequence[float]:
    """The next rate of the grid beyond the best one, where that lies at an end of those tried."""
    best = GRID.index(max(found, key=lambda rate: found[rate]))
    around = [GRID[i] for i in (best - 1, best + 1) if 0 <= i < len(GRID)]
    return [rate for rate in around if rate not in found]


# in a process of its own


def prepare(temperature: float, folder: Path) -> None:
    """Make the texts."""
    from learning_world import world

    world(_pair(), temperature, folder)


def prepare_ceiling(temperature: float, folder: Path) -> None:
    """Make the many texts."""
    from learning_world import CEILING_FAILURES, more_failures

    more_failures(_pair(), temperature, folder, CEILING_FAILURES)


def train(job: Job, folder: Path) -> str:
    """Train one, and keep its weights and what it took; returns a line about it."""
    import mlx.core as mx
    from learning_recipes import RECIPES, Task, all_weights, mean_acceptance
    from learning_world import CEILING_FAILURES, distinct_openings, more_failures, world

    from draftloop.store.atomic import write_atomically

    gc.collect()  # what the job before left in a cycle
    mx.clear_cache()
    pair = _pair()
    texts = world(pair, job.temperature, folder)
    task = Task.of(texts, job.failures, job.seed, job.learning_rate)
    if job.recipe == report.CEILING:
        more = more_failures(pair, job.temperature, folder, CEILING_FAILURES)
        learned = all_weights(pair, task, more, CEILING_STEPS)
    else:
        learned = RECIPES[job.recipe](pair, task)
    path = folder / f"{job.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(pair, path.with_suffix(".safetensors"), job)
    found = {
        "job": asdict(job),
        "openings": distinct_openings(pair, task.failures),
        "validation": (validation := mean_acceptance(pair, texts.validation)),
        "last": mean_acceptance(pair, task.validation),
        **asdict(learned),
    }
    write_atomically(path, json.dumps(found).encode())
    return f"{job.recipe}, {job.failures} failures, {job.learning_rate:g}, T {job.temperature:g}: {validation:.4f}"


def score_reported(jobs: Sequence[Job], folder: Path, blind: bool) -> None:
    """Keep, of each run of one temperature, (accepted, positions) of every reported text of both domains."""
    from learning_recipes import _rule, _text
    from learning_world import world

    from draftloop.evaluation.scoring import score
    from draftloop.store.atomic import write_atomically

    pair, found = _pair(), {job: dict[str, report.Sums]() for job in jobs}
    texts = world(pair, jobs[0].temperature, folder)
    domains = {report.WEAK: texts.validation, report.OWN: texts.replay} if blind else texts.reported
    for domain, some in domains.items():
        drafts = {job.name: partial(_trained, pair, folder, job) for job in jobs}
        scores = score(pair, [_text(example) for example in some], _rule(some), drafts)
        for job in jobs:
            found[job][domain] = [(round(float(s.position.sum()), 4), len(s.position)) for s in scores[job.name]]
    for job, accepted in found.items():
        write_atomically(_scores(folder, job, blind), json.dumps({"accepted": accepted}).encode())


def _scores(folder: Path, job: Job, blind: bool) -> Path:
    """Where they are kept."""
    return folder / f"{job.name}.{'blind' if blind else 'reported'}.json"


def _trained(pair: Any, folder: Path, job: Job) -> Any:
    """The draft as that run left it."""
    _bare(pair)
    if job.recipe != BARE:
        _load(pair, folder / f"{job.name}.safetensors", job)
    pair.draft.eval()
    return pair.draft


_loaded: list[Any] = []


def _pair() -> Any:
    """The embedded pair, loaded once a process, its draft as it was."""
    from draftloop.config import Models
    from draftloop.models.pair import load_pair

    if not _loaded:
        _loaded.append(load_pair(Models()))
        _loaded.append(dict(_parameters(_loaded[0].draft)))
    _bare(_loaded[0])
    return _loaded[0]


def _parameters(model: Any) -> list[tuple[str, Any]]:
    from mlx.utils import tree_flatten

    found: list[tuple[str, Any]] = tree_flatten(model.parameters())
    return found


def _bare(pair: Any) -> None:
    """Take off any adapter, and undo what was done to the weights themselves."""
    from draftloop.models import adapter as lora

    lora.detach(pair.draft)
    pair.draft.load_weights(list(_loaded[1].items()))


def _save(pair: Any, path: Path, job: Job) -> None:
    import mlx.core as mx

    from draftloop.models import adapter as lora

    whole = job.recipe == report.CEILING
    mx.save_safetensors(str(path), dict(_parameters(pair.draft)) if whole else lora.adapter_parameters(pair.draft))


def _load(pair: Any, path: Path, job: Job) -> None:
    import mlx.core as mx

    from draftloop.config import Lora
    from draftloop.models import adapter as lora

    weights = mx.load(str(path))
    if job.recipe == report.CEILING:
        pair.draft.load_weights(list(weights.items()))
        return
    layers_alone = not any("embed_tokens" in name for name in weights)
    shape = Lora(matrices="layers" if layers_alone else "all")
    lora.attach_fresh(pair.draft, lora.shape_for(pair.draft, shape), 0)
    lora.load_parameters(pair.draft, weights)


if __name__ == "__main__":
    main()
