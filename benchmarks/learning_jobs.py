"""One job of the learning benchmark in a process of its own: make the texts, train a draft, score trained drafts.

What comes of it is kept in a folder. Knows no search, no table, and no other process.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import learning_report as report
import mlx.core as mx
from learning_recipes import RECIPES, Task, _rule, _text, all_weights, mean_acceptance
from learning_world import CEILING_FAILURES, Size, distinct_openings, more_failures, world
from mlx import nn
from mlx.utils import tree_flatten

import draftloop
from draftloop.config import Lora, Models, Training
from draftloop.evaluation.scoring import score
from draftloop.models import adapter as lora
from draftloop.models.fingerprints import fingerprints
from draftloop.models.hub import find_model
from draftloop.models.pair import Pair, load_pair
from draftloop.store.atomic import write_atomically

CEILING_STEPS = 2_500
BARE = "none"


@dataclass(frozen=True)
class Setup:
    """What all jobs share; the defaults are those of the embedded pair.

    Attributes:
        target, draft: names or directories of the models.
        size: of the world.
        batch_size: most texts of a micro-batch.
        steps: optimizer steps; None for as many as draftloop makes of so many failures.
    """

    target: str = Models().target
    draft: str = Models().draft
    size: Size = field(default_factory=Size)
    batch_size: int = Training().batch_size
    steps: int | None = None

    @property
    def is_embedded(self) -> bool:
        """Whether it is the pair that comes with draftloop."""
        return self.models == Models()

    @property
    def models(self) -> Models:
        """As `load_pair` takes them."""
        return Models(target=self.target, draft=self.draft)

    @property
    def pair(self) -> str:
        """For a person: names of the models, and of a directory its own name alone."""
        return "embedded" if self.is_embedded else f"{Path(self.target).name}, draft {Path(self.draft).name}"


@dataclass(frozen=True)
class Job:
    """One training: what, from how much, and how; without a rate it is the trainer's own default."""

    temperature: float
    recipe: str
    failures: int
    seed: int
    learning_rate: float | None

    @property
    def name(self) -> str:
        """Of its files."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:8]
        return f"{self.recipe.split(',')[0].replace(' ', '-')}-{self.failures}-{self.seed}-{digest}"

    @property
    def bare(self) -> Job:
        """What its gain is over: no training at all."""
        return Job(self.temperature, BARE, 0, 0, 0.0)


@cache
def edition(setup: Setup) -> str:
    """Changes with all that a result depends on: package, recipes, texts, libraries, models, and the setup."""
    here, package = Path(__file__).parent, Path(str(draftloop.__file__)).parent
    sources = [here / "learning_recipes.py", here / "learning_world.py", *sorted(package.rglob("*.py"))]
    sources += sorted(package.rglob("*.safetensors"))
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sources))
    target, draft = (fingerprints(find_model(name)).model for name in (setup.target, setup.draft))
    shared = asdict(setup) | {"target": target, "draft": draft}
    digest.update(json.dumps([CEILING_STEPS, version("mlx"), version("mlx-lm"), shared]).encode())
    return digest.hexdigest()[:8]


def prepare(setup: Setup, temperature: float, folder: Path) -> None:
    """Make the texts."""
    world(_pair(setup), temperature, folder, setup.size)


def prepare_ceiling(setup: Setup, temperature: float, folder: Path) -> None:
    """Make the many texts."""
    more_failures(_pair(setup), temperature, folder, setup.size, CEILING_FAILURES)


def train(setup: Setup, job: Job, folder: Path) -> str:
    """Train one, and keep its weights and what it took; returns a line about it."""
    gc.collect()  # what the job before left in a cycle
    mx.clear_cache()
    pair = _pair(setup)
    texts = world(pair, job.temperature, folder, setup.size)
    task = Task.of(texts, job.failures, job.seed, job.learning_rate, setup.batch_size, setup.steps)
    if job.recipe == report.CEILING:
        more = more_failures(pair, job.temperature, folder, setup.size, CEILING_FAILURES)
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
    about = f"{job.recipe}, {job.failures} failures, {learned.rate:g}, T {job.temperature:g}"
    return f"{about}: {validation:.4f} after {learned.steps} steps in {learned.seconds:.0f} s"


def score_reported(setup: Setup, jobs: Sequence[Job], folder: Path, blind: bool) -> None:
    """Keep, of each run of one temperature, (accepted, positions) of every reported text of both domains."""
    pair, found = _pair(setup), {job: dict[str, report.Sums]() for job in jobs}
    texts = world(pair, jobs[0].temperature, folder, setup.size)
    domains = {report.WEAK: texts.validation, report.OWN: texts.replay} if blind else texts.reported
    for domain, some in domains.items():
        drafts = {job.name: partial(_trained, setup, folder, job) for job in jobs}
        scores = score(pair, [_text(example) for example in some], _rule(some), drafts)
        for job in jobs:
            found[job][domain] = [(round(float(s.position.sum()), 4), len(s.position)) for s in scores[job.name]]
    for job, accepted in found.items():
        write_atomically(scores_file(folder, job, blind), json.dumps({"accepted": accepted}).encode())


def scores_file(folder: Path, job: Job, blind: bool) -> Path:
    """Where `score_reported` keeps what it found."""
    return folder / f"{job.name}.{'blind' if blind else 'reported'}.json"


def _trained(setup: Setup, folder: Path, job: Job) -> nn.Module:
    """The draft as that run left it."""
    pair = _pair(setup)
    if job.recipe != BARE:
        _load(pair, folder / f"{job.name}.safetensors", job)
    pair.draft.eval()
    return pair.draft


def _pair(setup: Setup) -> Pair:
    """The pair with its draft as it was: without adapter, and with its own weights."""
    pair, weights = _loaded(setup.models.target, setup.models.draft)
    lora.detach(pair.draft)
    pair.draft.load_weights(list(weights.items()))
    return pair


@cache
def _loaded(target: str, draft: str) -> tuple[Pair, dict[str, mx.array]]:
    """Once a process."""
    pair = load_pair(Models(target=target, draft=draft))
    return pair, _parameters(pair.draft)


def _parameters(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def _save(pair: Pair, path: Path, job: Job) -> None:
    whole = job.recipe == report.CEILING
    mx.save_safetensors(str(path), _parameters(pair.draft) if whole else lora.adapter_parameters(pair.draft))


def _load(pair: Pair, path: Path, job: Job) -> None:
    weights: Any = mx.load(str(path))
    if job.recipe == report.CEILING:
        pair.draft.load_weights(list(weights.items()))
        return
    layers_alone = not any("embed_tokens" in name for name in weights)
    shape = Lora(matrices="layers" if layers_alone else "all")
    lora.attach_fresh(pair.draft, lora.shape_for(pair.draft, shape), 0)
    lora.load_parameters(pair.draft, weights)
