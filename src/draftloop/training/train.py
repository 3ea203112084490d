"""The one entry: records of a pair in, an immutable version of the draft's adapter out. Knows no command line.

    log, replay buffer -> mixture  what is trained on            dataset.mixture
                       -> plan     in which order, how long      dataset.batch_plan, dataset.curriculum
                       -> teacher  p at every label              teacher_setup, teacher
                       -> loop     steps within time and memory  loop -> step -> chunked_loss -> losses
                       -> version  in the registry, and a result

Training starts from the adapter that the pair's draft carries: a candidate goes on from the champion. A bare draft gets
a fresh one of the configured shape. Nothing is deleted: what was used is written into the version's manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import mlx.core as mx
from rich.console import Console

from .. import __version__
from ..config import Config, Models
from ..data.records import own_group
from ..data_directory import DataDirectory
from ..errors import AdapterError, RunError, StoreError, TrainingFailed
from ..models import adapter as lora
from ..models.adapter_format import parse_config
from ..models.pair import Pair, load_pair
from ..models.unfit_layers import find_unfit, learns_from_earlier_tokens
from ..registry.registry import Version
from ..runtime import memory
from ..runtime.bars import Bar
from ..runtime.signals import StopRequest, stop_request
from .dataset.batch_plan import make_batch_plan
from .dataset.contradiction import judge_checks
from .dataset.curriculum import Curriculum
from .dataset.mixture import TrainingMixture, gather, gather_again
from .forward import make_forward
from .loop import Loop, Progress
from .memory.fitting import Fit
from .memory.out_of_memory import OutOfMemoryFallback, estimate_fit
from .peak_rate import rate_by_width, rate_of_parent
from .report import WHAT, Reporter
from .result import TrainResult
from .run import RunDirectory, environment
from .spot_check import check_records
from .step import Learner, under
from .teacher_setup import set_up_teacher
from .time_limit import TimeLimit
from .token_acceptance import TokenReporter
from .token_report import TokenReport, count
from .validation import validation_batches

SCHEMA = 1
OnStep = Callable[[int, int], None]
"""Told after every optimizer step how many are done and of how many."""
Tensors = dict[str, mx.array]


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
        NothingToDo: no failure of this target and tokenizer in the split `train`, or none that it does not contradict.
        TrainingFailed: the numbers went wrong; no version was made.
        Interrupted: stopped; a checkpoint was written, and the message says how to go on.
        StoreError: the disk refused.
    """
    # 1. The training mixture, without what the target contradicts.
    quiet = on_step is not None if quiet is None else quiet
    with _reading(quiet) as bar:
        mixture = gather(data.log, data.replay, pair, config)
        is_checked = config.training.teacher == "live" and config.training.spot_check_share > 0
        if is_checked:
            note = partial(_note_checked, bar)
            checked = check_records(pair, mixture.failure_records, config.training, note)
            mixture = mixture.without_contradicted(judge_checks(checked))

    # 2. The adapter: the one that is trained on keeps its shape, a fresh one gets the configured one.
    parent, notes, progress = None, mixture.notes(config.training), Progress()
    if config.training.spot_check_share > 0 and not is_checked:
        notes.append("no record is checked against the target, which is not loaded (training.teacher is not live)")
    unfit = find_unfit(pair.draft)
    notes.extend(f"{key} carries no adapter: {why}" for key, why in unfit.items())
    if not learns_from_earlier_tokens(pair.draft):
        notes.append("no gradient comes from earlier tokens, whose keys and values this draft rounds; it learns less")
    wanted = lora.shape_for(pair.draft, config.training.lora, unfit)
    if lora.is_attached(pair.draft):
        parent, shape = pair.adapter, lora.carried_shape(pair.draft)
        if parent is not None and (shape.rank, shape.scale, shape.keys) != (wanted.rank, wanted.scale, wanted.keys):
            matrices = len(lora.adapter_parameters(pair.draft)) // 2
            kept = f"rank {shape.rank}, scale {shape.scale:g}, {matrices} matrices"
            notes.append(f"{parent} is trained on as it is: {kept}; training.lora is for new ones")
        if parent is not None and config.training.learning_rate == "auto":
            with suppress(AdapterError, StoreError):  # it is no version of this registry, or its manifest is not whole
                made = data.registry.manifest(parent)
                rule = rate_by_width(lora.input_width(pair.draft), shape.scale)
                progress.peak_rate = rate_of_parent(parent, made.metrics, made.config, rule)
        if progress.peak_rate is not None:
            notes.append(progress.peak_rate.describe())
    else:
        lora.attach_fresh(pair.draft, wanted, config.training.seed)

    # 3. The run directory, with all that reproduces the run.
    run, limit = RunDirectory.create(data.runs, data.files), TimeLimit.of(config.training.max_minutes)
    description = {
        "schema": SCHEMA,
        "run": run.id,
        **environment(),
        "seed": config.training.seed,
        "pair": asdict(pair.identity),
        "parent": parent,
        "adapter": lora.carried_shape(pair.draft).to_json(),
        "data": mixture.summary(),
        "config": config.model_dump(mode="json"),
        "limits": [] if config.training.max_minutes is None else [asdict(limit)],
        "purpose": purpose,
    }
    run.describe(description, mixture.to_json())

    # 4. The training.
    reporter = Reporter(run.path, quiet, on_step, files=data.files)
    for line in notes:
        reporter.say(line)
    with reporter.live():
        return _Session(run, pair, data, config, mixture, parent, reporter, limit, progress, None).work(stop)


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

    A run that its time limit ended can go on too, where it is given more: it gives another version then.

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
    # 1. The run, its checkpoint and its models.
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
    # 2. Its records.
    quiet = on_step is not None if quiet is None else quiet
    with _reading(quiet):
        mixture = gather_again(run.mixture(), data.log, data.replay, pair, config)
    # 3. Its adapter and progress; the weights come from the checkpoint.
    try:
        shape = parse_config(description.get("adapter"), f"run {run.id}")
    except AdapterError as error:
        raise RunError(f"run {run.id} cannot be resumed: {error}") from None
    lora.attach_fresh(pair.draft, shape, config.training.seed)
    reporter = Reporter(run.path, quiet, on_step, files=data.files)
    try:
        progress = Progress.from_json(saved)
    except ValueError as error:
        raise RunError(f"the checkpoint of run {run.id} is of another draftloop ({error}); start anew") from None
    # 4. More time, from where the checkpoint is, if one step fits.
    if more_minutes is not None:
        least = (progress.pace.step or 0.0) + (progress.pace.validation or 0.0)
        if 60 * more_minutes < least:
            raise RunError(
                f"{more_minutes:g} more minutes are too few: a step of run {run.id} and a validation take {least:.2g} "
                f"s; give more than {least / 60:.2g}"
            )
        run.give_more_time(TimeLimit.more(more_minutes, progress.step, progress.seconds))
        progress.fitted = None
    parent, limit = description.get("parent"), run.limit()
    with reporter.live():
        return _Session(run, pair, data, config, mixture, parent, reporter, limit, progress, tensors).work(stop)


@contextmanager
def _reading(quiet: bool) -> Iterator[Bar]:
    """A bar before there is a run with a reporter of its own."""
    with Bar(WHAT, Console(stderr=True, quiet=quiet)) as bar:
        bar.note("reading the log")
        yield bar


def _note_checked(bar: Bar, done: int, of: int) -> None:
    bar.note(f"checking records against the target: {done} of {of}")


@dataclass(frozen=True)
class _Session:
    """One start or resumption of a run, from `progress`; `tensors` are those of its checkpoint, None at the start."""

    run: RunDirectory
    pair: Pair
    data: DataDirectory
    config: Config
    mixture: TrainingMixture
    parent: str | None
    reporter: Reporter
    limit: TimeLimit
    progress: Progress
    tensors: Tensors | None

    def work(self, stop: StopRequest | None) -> TrainResult:
        """Train to the end and publish."""
        settings, mixture, reporter, progress = self.config.training, self.mixture, self.reporter, self.progress
        mx.reset_peak_memory()
        allowed = memory.budget(settings.memory, memory.read_device())

        # 1. What is trained on, step by step, and the teacher of it.
        failures, pool = mixture.failures.examples, {example.record_id: example for example in mixture.pool.examples}
        reporter.note("setting up the teacher")
        plan = make_batch_plan(failures, pool, settings)
        setup = set_up_teacher(self.pair, mixture, self.data.blobs, self.run, settings, reporter, plan.passes, allowed)
        curriculum = Curriculum(plan, failures, pool, settings, setup.stages, setup.make_samples)

        # 2. The learner, as it begins or where the checkpoint was.
        draft = self.pair.draft
        lora.set_dropout(draft, settings.lora.dropout)
        draft.eval()  # a run that was stopped leaves it where dropout acts
        forward = make_forward(draft, "draft", reporter.say)
        learner = Learner(draft, forward, setup.teacher, self.pair.width, settings, curriculum.steps)
        token_reporter = TokenReporter(self.pair, mixture)
        best: Tensors = {}
        if self.tensors is None:
            reporter.note("measuring the draft before it is trained")
            self.run.note_start(token_reporter.acceptance_by_kind())
        else:
            learner.restore(self.tensors)
            best = under("best.", self.tensors)
            reporter.forget_after(progress.step)
            of = f"{progress.fitted} that fit" if progress.fitted is not None else str(curriculum.steps)
            more = f", for {self.limit} from there" if self.limit.since_step == progress.step > 0 else ""
            reporter.say(f"run {self.run.id} goes on after step {progress.step} of {of}{more}")
        batches = validation_batches(mixture.validation.examples, settings.batch_size, settings.val_batches)

        # 3. The steps, within time and memory.
        reporter.note("measuring what a step takes of the memory")
        with ExitStack() as stack:
            stop = stop if stop is not None else stack.enter_context(stop_request("stopping: a checkpoint is written"))
            stack.enter_context(memory.limited(allowed))
            stack.callback(setattr, learner, "fit", Fit())  # the layers are as they were
            foreseen, planned = curriculum.foreseen, plan.micro_batches
            fresh = estimate_fit(learner, foreseen, allowed, *setup.teacher.bytes_needed)
            saved = progress.fit  # a resumed run goes on with it, unless there is less memory now
            learner.fit = saved if saved is not None and saved.is_within(fresh, foreseen) else fresh
            if learner.fit.changes(foreseen):
                limits = f"MLX may hold {allowed} (training.memory is {settings.memory})"
                reporter.say(f"memory: {limits}: {learner.fit.describe(planned)}")
            fallback = OutOfMemoryFallback(learner, planned, allowed, reporter.say)
            loop = Loop(
                self.run, learner, curriculum, batches, settings, reporter, stop, progress, best, fallback, self.limit
            )
            ended = loop.run()
        if progress.step == 0:
            raise TrainingFailed(
                f"the time limit is {self.limit}, and not one step was made in it; allow more with "
                "training.max_minutes (and retrain.max_minutes)"
            )

        # 4. A version, unless this run made it before it was killed; then the result.
        metrics = {"run": self.run.id, "replay_share": plan.replay_share, **asdict(progress)}
        metrics.pop("pace")
        trained = self._trained_ids(curriculum)
        version = (self._published(metrics) if self.tensors is not None else None) or self._publish(trained, metrics)
        reporter.note("measuring what the draft still misses")
        seen = set(trained)
        generations = zip(failures, mixture.failure_records, strict=True)
        learned_from = count([(example, record) for example, record in generations if record.id in seen])
        report = token_reporter.report(learned_from, self.run.start())
        result = self._result(version, ended, curriculum, learner.peak, fallback.peak, report)
        self.data.replay.remember(mixture.failure_records, settings.seed, settings.max_source_share)
        self.run.finish(asdict(result))
        return result

    def _trained_ids(self, curriculum: Curriculum) -> tuple[str, ...]:
        """Records of the steps made, but for those only ever skipped: in the log's order, then what was replayed."""
        given, skipped = curriculum.times_given(self.progress.step), self.progress.skipped_records
        seen = {name for name, times in given.items() if times > skipped.get(name, 0)}
        known = dict.fromkeys([*self.mixture.failures.ids, *self.mixture.pool.ids])
        return tuple(record_id for record_id in known if record_id in seen)

    def _published(self, metrics: dict[str, Any]) -> Version | None:
        """The version that this run made just before it was killed; a run's id alone may come again."""
        registry = self.data.registry
        for name in reversed(registry.versions()):
            with suppress(AdapterError):  # a damaged one is passed over; if it is this run's own, another is made
                if registry.manifest(name).metrics == metrics:
                    path = registry.root / name
                    registry.verify(path)
                    return Version(name, path, registry.manifest(name))
        return None

    def _publish(self, trained: tuple[str, ...], metrics: dict[str, Any]) -> Version:
        offered, learned = [*self.mixture.failures.ids, *self.mixture.unusable], set(trained)
        records = chain(self.mixture.failure_records, self.data.replay.records())  # the log may have changed since
        manifest = {
            "parent": self.parent,
            "pair": self.pair.identity,
            "record_ids": trained,
            "trained_groups": sorted({own_group(record) for record in records if record.id in learned}),
            "passed_over_ids": [record_id for record_id in offered if record_id not in learned],
            "config": self.config.model_dump(mode="json"),
            "metrics": metrics,
            "draftloop_version": __version__,
        }
        files = self.data.files
        return self.data.registry.create(lambda path: lora.save_adapter(self.pair.draft, path, files), manifest)

    def _result(
        self, version: Version, ended: str, curriculum: Curriculum, rate: float, peak: int, report: TokenReport
    ) -> TrainResult:
        mixture, progress, before, best = self.mixture, self.progress, self.progress.before, self.progress.best
        return TrainResult(
            version=version.name,
            path=str(version.path),
            parent=self.parent,
            run=self.run.id,
            run_path=str(self.run.path),
            ended=ended,
            loss=self.config.training.loss,
            learning_rate=rate,
            peak_rate=progress.peak_rate,
            steps=progress.step,
            planned_steps=curriculum.steps,
            best_step=progress.best_step,
            failures=len(mixture.failures.examples),
            validation_records=len(mixture.validation.examples),
            replay_pool=len(mixture.pool.examples),
            tokens=progress.tokens,
            replay_share=curriculum.plan.replay_share,
            seconds=progress.seconds,
            peak_memory_gb=peak / memory.GIGABYTE,
            train_loss_before=progress.first_loss,
            train_loss_after=progress.epoch_mean_loss,
            val_loss_before=before.loss if before else None,
            val_loss_after=best.loss if best else None,
            val_acceptance_before=before.acceptance if before else None,
            val_acceptance_after=best.acceptance if best else None,
            skipped_batches=progress.skipped,
            cut_labels=mixture.failures.cut_labels,
            left_out=dict(mixture.left_out),
            warnings=mixture.warnings,
            lessons=report,
        )
