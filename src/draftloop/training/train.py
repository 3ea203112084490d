"""The one entry: records of a pair in, an immutable version of the draft's adapter out. Knows no command line.

log + replay buffer -> material (failures, replay pool, validation) -> plan -> loop -> version. Training starts from
the adapter that the pair's draft carries: a candidate goes on from the champion. A bare draft gets a fresh one of the
configured shape. Nothing is deleted: what was used is written into the version's manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import mlx.core as mx
from rich.console import Console

from .. import __version__
from ..config import Config, Models
from ..data.records import own_group
from ..data_directory import DataDirectory
from ..errors import AdapterError, RunError, TrainingFailed
from ..models import adapter as lora
from ..models.adapter_format import AdapterConfig, parse_config
from ..models.pair import Pair, load_pair
from ..registry.registry import Version
from ..runtime import memory
from ..runtime.bars import Bar
from ..runtime.signals import StopRequest, stop_request
from .dataset.batch_plan import make_batch_plan
from .dataset.curriculum import Curriculum
from .dataset.mixture import TrainingMixture, gather, regather
from .forward import make_forward
from .loop import Loop, Progress, split_checkpoint
from .memory.fitting import Fit
from .memory.out_of_memory import OutOfMemoryFallback, estimate_fit
from .report import WHAT, Reporter
from .result import Ending, TrainResult, result_of
from .run import RunDirectory, environment
from .step import Learner
from .teacher import Teacher
from .teacher_setup import set_up_teacher
from .time_limit import TimeLimit
from .token_acceptance import TokenReporter
from .token_report import Counts, count, study
from .validation import validation_batches

SCHEMA = 1
OnStep = Callable[[int, int], None]
"""Told after every optimizer step how many are done and of how many."""


def train(
    pair: Pair,
    data: DataDirectory,
    config: Config,
    *,
    on_step: OnStep | None = None,
    quiet: bool | None = None,
    stop: StopRequest | None = None,
    purpose: str = "train",
) -> TrainResult:
    """Train the adapter that the pair's draft carries, or a fresh one on a bare draft, and publish it as a new version.

    Args:
        pair: its draft carries the trained weights afterwards.
        data: the log's splits `train` and `validation` are read; replay is brought up to date before and told of the
            failures after; the registry gets the version, and `runs` the directory of this one.
        config: resolved; `training` and `data` are read, all of it is kept in `run.yaml`.
        on_step: for a caller with a progress display of its own; nothing else goes to the terminal then.
        quiet: nothing to the terminal; by default so where `on_step` is given.
        stop: asks to stop; by default the first Ctrl-C or SIGTERM does.
        purpose: who asked for it, kept in `run.yaml`.

    Raises:
        NothingToDo: no failure of this target and tokenizer in the split `train`.
        TrainingFailed: the numbers went wrong; no version was made.
        Interrupted: stopped; a checkpoint was written, and the message says how to go on.
        StoreError: the disk refused.
    """
    with _reading(_is_quiet(on_step, quiet)):
        material = gather(data.log, data.replay, pair, config)
    parent = pair.adapter if lora.is_attached(pair.draft) else None
    if not lora.is_attached(pair.draft):
        lora.attach_fresh(pair.draft, lora.shape_for(pair.draft, config.training.lora), config.training.seed)
    run = RunDirectory.create(data.runs, data.files)
    run.describe({**_description(run, pair, parent, material, config), "purpose": purpose}, material.to_json())
    reporter = _reporter(run, data, on_step, quiet)
    for line in [*material.notes(config.training), *_kept_shape(pair, parent, config)]:
        reporter.say(line)
    session = _Session(run, pair, data, config, material, parent, reporter, TimeLimit.of(config.training.max_minutes))
    return session.work(stop, Progress(), None)


def resume(
    reference: str,
    data: DataDirectory,
    *,
    load: Callable[[Models], Pair] | None = None,
    more_minutes: float | None = None,
    on_step: OnStep | None = None,
    quiet: bool | None = None,
    stop: StopRequest | None = None,
) -> TrainResult:
    """Go on with an interrupted run, on its own records and configuration, as if it had never stopped.

    One that its time limit ended, too, where it is given more: it gives another version then.

    Args:
        reference: a run's id, or `latest` for the newest one that can be resumed.
        data: the directory of the start; its settings are those of the run.
        load: gives the pair of the run's configuration, by default as `load_pair` does; its adapter, if any, is
            replaced by the run's.
        more_minutes: of training from here, above 0, whatever limit it had; None leaves that.
        on_step, quiet, stop: as in `train`.

    Raises:
        RunError: no such run, it is finished, or its records, pair or checkpoint are not what they were; or more time
            is too little for one step.
        TrainingFailed, Interrupted, StoreError: as in `train`.
    """
    run = RunDirectory.find(data.runs, reference, data.files, more_time=more_minutes is not None)
    config, description = run.config(), run.description()
    data = replace(data, settings=config.data)
    tensors, saved = run.checkpoints.load()
    lazy = config.training.teacher != "live"
    pair = load(config.models) if load else load_pair(config.models, lazy_target=lazy, names=data.names)
    if description.get("pair") != asdict(pair.identity):
        raise RunError(
            f"run {run.id} was made with other models than {config.models.target} and {config.models.draft} are now; "
            "start a new training"
        )
    with _reading(_is_quiet(on_step, quiet)):
        material = regather(run.material(), data.log, data.replay, pair, config)
    lora.attach_fresh(pair.draft, _shape(run, description), config.training.seed)
    reporter = _reporter(run, data, on_step, quiet)
    try:
        progress = Progress.from_json(saved)
    except (KeyError, TypeError) as error:
        raise RunError(f"the checkpoint of run {run.id} is of another draftloop ({error}); start anew") from None
    if more_minutes is not None:
        _give_more_time(run, progress, more_minutes)
    session = _Session(run, pair, data, config, material, description.get("parent"), reporter, run.limit())
    return session.work(stop, progress, tensors)


def _give_more_time(run: RunDirectory, progress: Progress, minutes: float) -> None:
    """Let the run go on for so many minutes from where its checkpoint is. Raises RunError: not one step fits."""
    least = (progress.pace.step or 0.0) + (progress.pace.validation or 0.0)
    if 60 * minutes < least:
        raise RunError(
            f"{minutes:g} more minutes are too few: a step of run {run.id} and a validation take {least:.2g} s; give "
            f"more than {least / 60:.2g}"
        )
    run.give_more_time(TimeLimit.more(minutes, progress.step, progress.seconds))
    progress.fitted = None


@dataclass(frozen=True)
class _Session:
    """One start or resumption of a run."""

    run: RunDirectory
    pair: Pair
    data: DataDirectory
    config: Config
    material: TrainingMixture
    parent: str | None
    reporter: Reporter
    limit: TimeLimit

    def work(self, stop: StopRequest | None, progress: Progress, tensors: dict[str, mx.array] | None) -> TrainResult:
        """Train from `progress` to the end and publish."""
        with self.reporter.live():
            return self._work(stop, progress, tensors)

    def _work(self, stop: StopRequest | None, progress: Progress, tensors: dict[str, mx.array] | None) -> TrainResult:
        settings, material = self.config.training, self.material
        mx.reset_peak_memory()
        allowed = memory.budget(settings.memory, memory.read_device())
        failures, pool = material.failures.examples, {one.record_id: one for one in material.pool.examples}
        self.reporter.note("looking at what the teacher knows of the texts")
        plan = make_batch_plan(failures, pool, settings)
        taught = set_up_teacher(
            self.pair, material, self.data.blobs, self.run, settings, self.reporter, plan.passes, allowed
        )
        course = Curriculum(plan, failures, pool, settings, taught.stages, taught.more)
        learner = self._learner(taught.teacher, course.steps)
        probe = TokenReporter(self.pair, material)
        best = self._restore(learner, tensors, progress, course.steps) if tensors is not None else {}
        batches = validation_batches(material.validation.examples, settings.batch_size, settings.val_batches)
        if tensors is None:
            self.reporter.note("trying the draft out before it is trained")
            self.run.note_start(probe.tally())
        self.reporter.note("measuring what a step takes of the memory")
        with ExitStack() as stack:
            stop = stop if stop is not None else stack.enter_context(stop_request("stopping: a checkpoint is written"))
            within = self._within_memory(learner, taught.teacher, course, progress, allowed, stack)
            reporter, limit = self.reporter, self.limit
            loop = Loop(self.run, learner, course, batches, settings, reporter, stop, progress, best, within, limit)
            ended = loop.run()
        if progress.step == 0:
            raise TrainingFailed(
                f"the time limit is {self.limit}, and not one step was made in it; allow more with "
                "training.max_minutes (and retrain.max_minutes)"
            )
        metrics = {"run": self.run.id, "replay_share": course.plan.replay_share, **asdict(progress)}
        metrics.pop("pace")
        published = self._published(metrics) if tensors is not None else None
        trained = self._trained_ids(course, progress)
        version = published or self._publish(trained, metrics)
        self.reporter.note("looking at what the draft still misses")
        lessons = probe.lessons(self._learned_from(trained), self.run.start())
        ending = Ending(ended, course.steps, course.plan.replay_share, within.peak, lessons)
        result = result_of(self.run, version, self.parent, settings.loss, material, progress, ending)
        self.data.replay.remember(material.failure_records, settings.seed)
        self.run.finish(asdict(result))
        return result

    def _learner(self, teacher: Teacher, steps: int) -> Learner:
        pair, settings = self.pair, self.config.training
        lora.set_dropout(pair.draft, settings.lora.dropout)
        pair.draft.eval()  # a run that was stopped leaves it where dropout acts
        forward = make_forward(pair.draft, "draft", self.reporter.say)
        return Learner(pair.draft, forward, teacher, pair.width, settings, steps)

    def _within_memory(
        self,
        learner: Learner,
        teacher: Teacher,
        course: Curriculum,
        progress: Progress,
        allowed: memory.Budget,
        stack: ExitStack,
    ) -> OutOfMemoryFallback:
        """Fit the learner into what `training.memory` allows, by estimate; a resumed run goes on as it was cut."""
        setting, everything, foreseen = self.config.training.memory, course.plan.micro_batches, course.foreseen
        stack.enter_context(memory.limited(allowed))
        stack.callback(setattr, learner, "fit", Fit())  # the layers are as they were
        fresh = estimate_fit(learner, foreseen, allowed, *teacher.takes)
        saved = progress.fit  # what it was stepped down to counts, unless there is less memory now
        learner.fit = saved if saved is not None and saved.is_within(fresh, foreseen) else fresh
        if learner.fit.changes(foreseen):
            self.reporter.say(
                f"memory: MLX may hold {allowed} (training.memory is {setting}): {learner.fit.describe(everything)}"
            )
        return OutOfMemoryFallback(learner, everything, allowed, self.reporter.say)

    def _restore(
        self, learner: Learner, tensors: dict[str, mx.array], progress: Progress, steps: int
    ) -> dict[str, mx.array]:
        """Put the learner where the checkpoint was; returns the best weights so far."""
        state, best = split_checkpoint(tensors)
        learner.restore(state)
        self.reporter.forget_after(progress.step)
        of = f"{progress.fitted} that fit" if progress.fitted is not None else str(steps)
        more = f", for {self.limit} from there" if self.limit.since == progress.step > 0 else ""
        self.reporter.say(f"run {self.run.id} goes on after step {progress.step} of {of}{more}")
        return best

    def _published(self, metrics: dict[str, Any]) -> Version | None:
        """The version that this run made before it was killed on its last metres; a run's id alone may come again."""
        registry = self.data.registry
        for name in reversed(registry.versions()):
            with suppress(AdapterError):  # a damaged one is passed over; if it is this run's own, another is made
                if registry.manifest(name).metrics == metrics:
                    path = registry.root / name
                    registry.verify(path)
                    return Version(name, path, registry.manifest(name))
        return None

    def _publish(self, trained: tuple[str, ...], metrics: dict[str, Any]) -> Version:
        offered, learned = [*self.material.failures.ids, *self.material.unusable], set(trained)
        manifest = {
            "parent": self.parent,
            "pair": self.pair.identity,
            "record_ids": trained,
            "trained_groups": self._groups_of(learned),
            "passed_over_ids": [record_id for record_id in offered if record_id not in learned],
            "config": self.config.model_dump(mode="json"),
            "metrics": metrics,
            "draftloop_version": __version__,
        }
        files = self.data.files
        return self.data.registry.create(lambda path: lora.save_adapter(self.pair.draft, path, files), manifest)

    def _groups_of(self, record_ids: Collection[str]) -> list[str]:
        records = chain(self.data.log.records({"train"}), self.data.replay.records())
        return sorted({own_group(record) for record in records if record.id in record_ids})

    def _trained_ids(self, course: Curriculum, progress: Progress) -> tuple[str, ...]:
        """Records of the steps made, but for those only ever skipped: in the log's order, then what was replayed."""
        given = course.times_given(progress.step)
        seen = {name for name, times in given.items() if times > progress.skipped_records.get(name, 0)}
        known = dict.fromkeys([*self.material.failures.ids, *self.material.pool.ids])
        return tuple(record_id for record_id in known if record_id in seen)

    def _learned_from(self, trained: Collection[str]) -> Counts:
        """The failures among what was trained on."""
        seen, failures = set(trained), self.material.failures.examples
        return count(study([e for e in failures if e.record_id in seen], self.material.failure_records))


def _shape(run: RunDirectory, description: dict[str, Any]) -> AdapterConfig:
    try:
        return parse_config(description.get("adapter"), f"run {run.id}")
    except AdapterError as error:
        raise RunError(f"run {run.id} cannot be resumed: {error}") from None


def _reporter(run: RunDirectory, data: DataDirectory, on_step: OnStep | None, quiet: bool | None) -> Reporter:
    return Reporter(run.path, _is_quiet(on_step, quiet), on_step, files=data.files)


def _is_quiet(on_step: OnStep | None, quiet: bool | None) -> bool:
    return quiet if quiet is not None else on_step is not None


@contextmanager
def _reading(quiet: bool) -> Iterator[None]:
    """Shows that work goes on before there is a run that could tell of it."""
    with Bar(WHAT, Console(stderr=True, quiet=quiet)) as bar:
        bar.note("reading the log")
        yield


def _kept_shape(pair: Pair, parent: str | None, config: Config) -> list[str]:
    """Says that an adapter which is trained on keeps its rank, scale and matrices."""
    shape, wanted = lora.carried_shape(pair.draft), lora.shape_for(pair.draft, config.training.lora)
    if parent is None or (shape.rank, shape.scale, shape.keys) == (wanted.rank, wanted.scale, wanted.keys):
        return []
    kept = f"rank {shape.rank}, scale {shape.scale:g}, {len(lora.adapter_parameters(pair.draft)) // 2} matrices"
    return [f"{parent} is trained on as it is: {kept}; training.lora is for new ones"]


def _description(
    run: RunDirectory, pair: Pair, parent: str | None, material: TrainingMixture, config: Config
) -> dict[str, Any]:
    """What `run.yaml` says."""
    return {
        "schema": SCHEMA,
        "run": run.id,
        **environment(),
        "seed": config.training.seed,
        "pair": asdict(pair.identity),
        "parent": parent,
        "adapter": lora.carried_shape(pair.draft).to_json(),
        "data": material.summary(),
        "config": config.model_dump(mode="json"),
        "limits": [] if config.training.max_minutes is None else [TimeLimit.of(config.training.max_minutes).to_json()],
    }
