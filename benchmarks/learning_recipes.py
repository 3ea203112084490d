"""The recipes of the learning benchmark: each makes a trained draft out of failures, at a given peak learning rate.

One gets none, and has the rate that draftloop's trainer takes by itself.

`mlx_lm.lora` is mlx-lm's own trainer. Every other recipe goes through draftloop's learner and loop, some of them with a
weight for each position, which the product does not have. All get the same texts, replay, micro-batches, matrices, rank
and steps, and keep the weights that accept most on the same few validation texts.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from learning_world import World
from mlx.utils import tree_flatten
from mlx_lm.tuner.trainer import TrainingArgs
from mlx_lm.tuner.trainer import train as mlx_lm_train
from mlx_lm.tuner.utils import build_schedule
from numpy.typing import NDArray

from draftloop.config import Training
from draftloop.data.teacher_blobs import BlobFile
from draftloop.decoding.teacher_forced import TargetGeneration
from draftloop.evaluation.estimator import position_weights
from draftloop.evaluation.scoring import score_carried
from draftloop.models import adapter as lora
from draftloop.models.pair import Pair
from draftloop.runtime.signals import StopRequest
from draftloop.training import step
from draftloop.training.batches import make_batch
from draftloop.training.dataset.batch_plan import BatchPlan, make_batch_plan
from draftloop.training.dataset.curriculum import Curriculum
from draftloop.training.dataset.examples import Example, Selection, round_up
from draftloop.training.dataset.mixture import TrainingMixture
from draftloop.training.dataset.on_policy import sample_outputs
from draftloop.training.forward import make_forward
from draftloop.training.loop import Loop, Progress
from draftloop.training.memory.out_of_memory import OutOfMemoryFallback
from draftloop.training.report import Reporter
from draftloop.training.run import RunDirectory
from draftloop.training.step import Learner
from draftloop.training.teacher import LiveTeacher
from draftloop.training.teacher_setup import set_up_teacher
from draftloop.training.time_limit import TimeLimit
from draftloop.training.validation import validation_batches

K = 4
WARMUP = 10  # steps of mlx_lm.lora
CEILING_MEMORY_MB = 1_500  # for the whole distributions of 4,000 texts, in 16 bits
CEILING_CHECKS = 100  # steps between looks at the validation texts
Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Task:
    """What a recipe is to learn from, and how long.

    Attributes:
        failures, replay, validation: the texts.
        seed: of everything that is random.
        learning_rate: the peak; None leaves it to the trainer's own default.
        settings: of draftloop's trainer.
        steps: optimizer steps; None for as many as draftloop makes of so many failures.
    """

    failures: Sequence[Example]
    replay: Sequence[Example]
    validation: Sequence[Example]
    seed: int
    learning_rate: float | None
    settings: Training
    steps: int | None = None

    @classmethod
    def of(
        cls,
        world: World,
        failures: int,
        seed: int,
        learning_rate: float | None,
        batch_size: int,
        steps: int | None = None,
    ) -> Task:
        """So many failures of a world, which ones being drawn by the seed; a quarter as much text to replay from."""
        drawn = random.Random(seed).sample(world.failures, failures)
        replay = random.Random(seed).sample(world.replay, min(len(world.replay), max(4, failures // 4)))
        few = max(4, min(len(world.validation), failures // 5))
        settings = Training(seed=seed, batch_size=batch_size)
        if learning_rate is not None:
            settings = settings.model_copy(update={"learning_rate": learning_rate})
        return cls(drawn, replay, world.validation[:few], seed, learning_rate, settings, steps)

    @property
    def plan(self) -> BatchPlan:
        """The micro-batches of the failures alone, which every recipe follows, or has as many of."""
        return make_batch_plan(self.failures, self.pool, self.settings, self.steps)

    @property
    def pool(self) -> dict[str, Example]:
        """What replay is drawn from."""
        return {example.record_id: example for example in self.replay}


@dataclass(frozen=True)
class Learned:
    """What a training took; the draft carries the result.

    Attributes:
        steps: optimizer steps made.
        rate: peak learning rate.
        seconds: of training, text made for it included.
        peak_mb: of MLX, in MiB (2**20 bytes): the name is as old as the runs that are kept.
        curve: (seconds, acceptance on the validation texts) while it ran; empty where the recipe does not look.
    """

    steps: int
    rate: float
    seconds: float
    peak_mb: float
    curve: list[tuple[float, float]] = field(default_factory=list)


def mlx_lm_lora(pair: Pair, task: Task, answers: int = 0, share: float = 1.0) -> Learned:
    """mlx-lm's own LoRA trainer: Adam, its linear schedule with warm-up, cross-entropy on completion tokens.

    Two things are not its default, both in its favour. It is fed the micro-batches of the plan that the other recipes
    follow, where its own batching drops the longest texts; and its mask, which counts one filler after each text as a
    label, ends where the text does. Of its checkpoints, start and end among them, the best one on the validation texts
    is kept. As it is, it knows no temperature: it learns at 1 what was drawn at another.

    Args:
        pair: its draft is trained.
        task: what is learned from.
        answers: how often the target answers each prompt anew before.
        share: of the steps that the other recipes make.
    """
    assert task.learning_rate is not None, "mlx_lm.lora has no rule for its rate"
    began = time.perf_counter()
    texts = [*task.failures, *_answers(pair, task, answers)]
    _attach(pair, task.settings)
    steps = round(share * len(task.plan.windows))
    plan = make_batch_plan(texts, task.pool, task.settings, steps)
    schedule = build_schedule(
        {"name": "linear_schedule", "warmup": WARMUP, "arguments": [task.learning_rate, 0.0, steps - WARMUP]}
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), _compiled():
        mx.save_safetensors(str(Path(folder) / f"{0:07d}_adapters.safetensors"), lora.adapter_parameters(pair.draft))
        arguments = TrainingArgs(
            batch_size=1,
            iters=steps,
            steps_per_report=10**9,
            steps_per_save=task.settings.steps_per_eval,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )
        mx.random.seed(task.seed)
        mx.reset_peak_memory()
        mlx_lm_train(pair.draft, optim.Adam(schedule), plan.micro_batches, args=arguments, iterate_batches=_as_arrays)
        seconds, peak = time.perf_counter() - began, mx.get_peak_memory()
        _keep_the_best(pair, task, sorted(Path(folder).glob("*adapters.safetensors")))
    return Learned(steps, task.learning_rate, seconds, peak / 2**20)


def _as_arrays(dataset: Sequence[Sequence[Example]], **_: Any) -> Iterator[tuple[mx.array, mx.array]]:
    """Micro-batches as mlx-lm's trainer takes them: ids, and the positions of the first and the last label."""
    for examples in dataset:
        longest = 1 + round_up(max(len(example.ids) for example in examples), 32)
        ids = np.zeros((len(examples), longest), np.int32)
        for row, example in enumerate(examples):
            ids[row, : len(example.ids)] = example.ids
        yield mx.array(ids), mx.array([(example.prompt_length, len(example.ids) - 1) for example in examples])


def _keep_the_best(pair: Pair, task: Task, checkpoints: Sequence[Path]) -> None:
    """Of several adapters, the one with which the draft accepts most on the validation texts."""

    def acceptance(path: Path) -> float:
        lora.load_parameters(pair.draft, mx.load(str(path)))
        return mean_acceptance(pair, task.validation)

    lora.load_parameters(pair.draft, mx.load(str(max(checkpoints, key=acceptance))))


@contextlib.contextmanager
def _compiled() -> Iterator[None]:
    """mlx-lm's trainer as it is: its step is compiled."""
    mx.enable_compile()
    try:
        yield
    finally:
        mx.disable_compile()


def _answers(pair: Pair, task: Task, times: int) -> list[Example]:
    return sample_outputs(
        pair,
        task.failures,
        times,
        own=False,
        seed=task.seed,
        enough=lambda: False,
        on_sample=lambda *_: None,
    )


@dataclass(frozen=True)
class Recipe:
    """One of draftloop's own, or a variation of it.

    Attributes:
        settings: of the training, beside the defaults of the comparison.
        weights: gives every position of the failures a weight; None where all count alike.
    """

    settings: Mapping[str, Any]
    weights: Callable[[Pair, Task], Weights] | None = None

    def __call__(self, pair: Pair, task: Task) -> Learned:
        """Train the pair's draft."""
        settings = task.settings.model_copy(update={"answers": 0, "proposals": 0, **self.settings})
        began = time.perf_counter()
        weights = self.weights(pair, task) if self.weights else None
        weighing = time.perf_counter() - began
        _attach(pair, settings)
        with tempfile.TemporaryDirectory() as folder, _weighted(weights):
            mx.reset_peak_memory()
            loop, curve, peak = _run(pair, replace(task, settings=settings), Path(folder))
        return Learned(loop.progress.step, _peak_rate(loop), weighing + loop.progress.seconds, peak / 2**20, curve)


def _peak_rate(loop: Loop) -> float:
    """The peak that a training had: the given one, or the one that it chose."""
    return loop.learner.peak


def all_weights(pair: Pair, task: Task, texts: Sequence[Example], steps: int) -> Learned:
    """The ceiling: every weight of the draft itself, by the loss `lk`, on far more text."""
    assert task.learning_rate is not None, "the ceiling's rate is searched"
    lora.detach(pair.draft)
    settings = task.settings.model_copy(update={"answers": 0})
    pair.draft.unfreeze()
    plan = make_batch_plan(texts, task.pool, settings, steps)
    everything, forward = [*texts, *task.replay], make_forward(pair.target, "target", _silent)
    teacher = LiveTeacher(forward, pair.width, everything, CEILING_MEMORY_MB, _silent)
    learner = Learner(pair.draft, make_forward(pair.draft, "draft", _silent), teacher, pair.width, settings, steps)
    mx.reset_peak_memory()
    began = time.perf_counter()
    best: tuple[float, dict[str, mx.array]] = (0.0, {})
    for number, window in enumerate(plan.windows, 1):
        learner.train(window, number - 1, 0, _nothing)
        if number % CEILING_CHECKS == 0 or number == steps:
            accepted = mean_acceptance(pair, task.validation)
            if accepted > best[0]:
                best = accepted, {name: mx.array(values) for name, values in tree_flatten(pair.draft.parameters())}
    pair.draft.load_weights(list(best[1].items()))
    pair.draft.eval()
    pair.draft.freeze()
    return Learned(steps, task.learning_rate, time.perf_counter() - began, mx.get_peak_memory() / 2**20)


def _run(pair: Pair, task: Task, folder: Path) -> tuple[Loop, list[tuple[float, float]], int]:
    settings = task.settings
    run = RunDirectory.create(folder)
    reporter = Reporter(run.path, quiet=True)
    failures, pool, held_out = (Selection(list(part)) for part in (task.failures, task.replay, task.validation))
    material = TrainingMixture(failures, pool, held_out, failure_records=[], validation_records=[])
    plan = task.plan
    taught = set_up_teacher(pair, material, BlobFile(folder / "none"), run, settings, reporter, plan.passes)
    course = Curriculum(plan, task.failures, task.pool, settings, taught.stages, taught.make_samples)
    forward = make_forward(pair.draft, "draft", _silent)
    learner = Learner(pair.draft, forward, taught.teacher, pair.width, settings, course.steps)
    batches = validation_batches(task.validation, settings.batch_size, settings.val_batches)
    within = OutOfMemoryFallback(learner, course.plan.micro_batches, None, _silent)
    limit, curve = TimeLimit.of(settings.max_minutes), _Curve()
    loop = Loop(run, learner, course, batches, settings, reporter, StopRequest(), Progress(), {}, within, limit)
    curve.follow(loop)
    loop.run()
    return loop, curve.points, within.peak


class _Curve:
    """(seconds, acceptance) at every validation of a loop."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []

    def follow(self, loop: Loop) -> None:
        """Be told of every validation."""
        report = loop.reporter.report

        def told(kind: str, values: dict[str, Any], text: str) -> None:
            if kind == "validation":
                self.points.append((loop.progress.seconds, values["acceptance"]))
            report(kind, values, text)

        loop.reporter.report = told  # type: ignore[method-assign]


def rejected_only(pair: Pair, task: Task) -> Weights:
    """1 where a verification would have rejected the draft's token, drawn once; else 0."""
    lora.detach(pair.draft)
    found = {}
    for example, w in _weights(pair, task.failures):
        seed = hashlib.sha256(f"{task.seed} {example.record_id}".encode()).digest()
        draws = np.random.default_rng(int.from_bytes(seed[:8], "little")).random(len(w))
        found[example.record_id] = (draws > w).astype(np.float32)
    return found


def by_refusal(pair: Pair, task: Task) -> Weights:
    """1 − a of the untrained draft at each position, with mean 1."""
    lora.detach(pair.draft)
    texts = [_text(example) for example in task.failures]
    scores = score_carried(pair, texts, _rule(task.failures))
    refused = [1.0 - found.position for found in scores]
    mean = np.concatenate(refused).mean()
    return {e.record_id: (r / mean).astype(np.float32) for e, r in zip(task.failures, refused, strict=True)}


def by_reach(pair: Pair, task: Task) -> Weights:
    """How often a draft of K tokens has its turn at each position, with mean 1: after a full round it has none."""
    lora.detach(pair.draft)
    found = {example.record_id: _turns(w) for example, w in _weights(pair, task.failures)}
    mean = np.concatenate(list(found.values())).mean()
    return {record_id: (turns / mean).astype(np.float32) for record_id, turns in found.items()}


def learnable(pair: Pair, task: Task, share: float = 0.4) -> Weights:
    """1 at the share of positions where a trained reference gains most on the untrained draft (AdaSPEC, 2510.19779)."""
    lora.detach(pair.draft)
    before = _surprise(pair, task.failures)
    Recipe({"loss": "kl"})(pair, task)
    after = _surprise(pair, task.failures)
    lora.detach(pair.draft)
    found = {}
    for record_id, first in before.items():
        gain = first - after[record_id]
        least = np.quantile(gain, 1 - share)
        found[record_id] = (gain >= least).astype(np.float32)
    return found


OURS = Recipe({"answers": Training().answers, "proposals": Training().proposals})
RECIPES: dict[str, Callable[[Pair, Task], Learned]] = {
    "mlx_lm.lora": mlx_lm_lora,
    "kl": Recipe({"loss": "kl"}),
    "lk": Recipe({"loss": "lk"}),
    "ours": OURS,
    "ours, as by default": OURS,  # gets no rate
    "ce": Recipe({"loss": "ce"}),
    "tv": Recipe({"loss": "tv"}),
    "nla": Recipe({"loss": "nla"}),
    "kl, rejected positions only": Recipe({"loss": "kl"}, rejected_only),
    "kl, learnable 40%": Recipe({"loss": "kl"}, learnable),
    "lk, weighted by refusal": Recipe({"loss": "lk"}, by_refusal),
    "lk, weighted by reach": Recipe({"loss": "lk"}, by_reach),
    "lk, own text in 4 stages": Recipe({"loss": "lk", "proposals": 4}),
    "lk, new answers x 3": Recipe({"loss": "lk", "answers": 3}),
    "kl, new answers x 3": Recipe({"loss": "kl", "answers": 3}),
    "mlx_lm.lora, new answers x 3": partial(mlx_lm_lora, answers=3),
    "mlx_lm.lora, a quarter of the steps": partial(mlx_lm_lora, share=0.25),
}


def _attach(pair: Pair, settings: Training) -> None:
    lora.attach_fresh(pair.draft, lora.shape_for(pair.draft, settings.lora), settings.seed)


@contextlib.contextmanager
def _weighted(weights: Weights | None) -> Any:
    """Batches whose positions of failures count by their weights."""
    if weights is None:
        yield
        return
    plain = make_batch

    def weighted(examples: Sequence[Example]) -> Any:
        batch = plain(examples)
        found = np.zeros(batch.size, np.float32)
        start = 0
        for example in examples:
            n = len(example.labels)
            found[start : start + n] = weights[example.record_id][:n] if example.record_id in weights else 1.0
            start += n
        return replace(batch, labels=batch.labels._replace(weights=mx.array(found)))

    setattr(step, "make_batch", weighted)  # noqa: B010 - what the learner calls
    try:
        yield
    finally:
        setattr(step, "make_batch", plain)  # noqa: B010


def _weights(pair: Pair, examples: Sequence[Example]) -> list[tuple[Example, NDArray[np.float64]]]:
    """w at each position of each text for the draft as it is."""
    rule = _rule(examples)
    scores = score_carried(pair, [_text(example) for example in examples], rule)
    return [(e, position_weights(s.log_p, s.log_q, rule)) for e, s in zip(examples, scores, strict=True)]


def _surprise(pair: Pair, examples: Sequence[Example]) -> dict[str, NDArray[np.float64]]:
    scores = score_carried(pair, [_text(example) for example in examples], "rejection")
    return {example.record_id: -found.log_q for example, found in zip(examples, scores, strict=True)}


def _turns(w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a renewal process whose rounds accept with w: how likely each position is one at which the draft proposes."""
    n = len(w)
    starts, turns = np.zeros(n + K + 2), np.zeros(n)
    starts[0] = 1.0
    for i in range(n):
        alive = starts[i]
        for offset in range(K + 1):
            at = i + offset
            if offset == K or at >= n:
                starts[min(i + K + 1, n)] += alive
                break
            turns[at] += alive
            starts[at + 1] += alive * (1.0 - w[at])
            alive *= w[at]
    return turns


def _text(example: Example) -> TargetGeneration:
    return TargetGeneration(example.ids[: example.prompt_length], example.labels, example.sampler)


def mean_acceptance(pair: Pair, examples: Sequence[Example]) -> float:
    """Acceptance per position of all texts together, by the draft as it is."""
    sums = accepted(pair, examples)
    return sum(found for found, _ in sums) / sum(positions for _, positions in sums)


def accepted(pair: Pair, examples: Sequence[Example]) -> list[tuple[float, int]]:
    """Of each text the sum of the acceptance over its positions, and their number."""
    pair.draft.eval()
    scores = score_carried(pair, [_text(example) for example in examples], _rule(examples))
    return [(float(found.position.sum()), len(found.position)) for found in scores]


def _rule(examples: Sequence[Example]) -> Literal["greedy", "rejection"]:
    return "greedy" if examples[0].sampler.temperature == 0 else "rejection"


def _silent(line: str) -> None:
    """Nobody listens."""


def _nothing() -> None:
    """Nobody wants to stop."""
