"""The teacher set-up: which teacher a training has, and the new samples that a live one is given. Makes no step.

`training.teacher` chooses: `live`, the target itself; `logged`, what the collector kept of it; `none`, its tokens
alone. Only a live one has probabilities for outputs that nobody collected: target samples on the prompts that failed
(`training.answers`), and on-policy samples of the draft from stage to stage (`training.proposals`). All are kept in the
run's directory, so that a resumed run has the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..config import Training
from ..data.teacher_blobs import BlobFile
from ..data.teacher_top_k import DistributionsError, TopK, decode_top_k, within_width
from ..decoding.batched_generation import NoRoom
from ..errors import AccessDenied, StoreError
from ..models.pair import Pair
from ..runtime.memory import Budget, room_left
from .dataset.curriculum import Enough, MakeSamples
from .dataset.examples import Example
from .dataset.mixture import TrainingMixture
from .dataset.on_policy import sample_outputs
from .forward import make_forward
from .memory.fitting import SAFETY
from .report import Reporter
from .run import RunDirectory
from .teacher import LiveTeacher, LoggedTeacher, Teacher

LEAST_PASSES = 2  # over the failures themselves; with so many that there are no more, there are no target samples


@dataclass(frozen=True)
class TeacherSetup:
    """A teacher, how many stages have new samples, and what gives those of each."""

    teacher: Teacher
    stages: int
    make_samples: MakeSamples


def set_up_teacher(
    pair: Pair,
    mixture: TrainingMixture,
    blobs: BlobFile,
    run: RunDirectory,
    settings: Training,
    reporter: Reporter,
    passes: int,
    allowed: Budget | None = None,
) -> TeacherSetup:
    """What `settings` ask for.

    Args:
        pair: its target is not touched unless it teaches live.
        mixture: everything that will be trained on or validated with.
        blobs: what the collector kept.
        run: where new samples are kept.
        settings: teacher, answers and proposals.
        reporter: told what is missing, and of the samples made.
        passes: that the training makes over the failures.
        allowed: what MLX may hold; None is no bound.
    """
    # 1. Without the target.
    parts = (mixture.failures, mixture.pool, mixture.validation)
    everything = [example for part in parts for example in part.examples]
    if settings.teacher != "live":
        kept = _kept(everything, blobs, pair.width, reporter) if settings.teacher == "logged" else {}
        return TeacherSetup(LoggedTeacher(kept), 0, lambda _stage, _enough: ())
    # 2. How many new samples: `ce` learns from the target's tokens, and on-policy samples have none.
    failures = mixture.failures.examples
    changes = {"answers": min(settings.answers, max(0, passes - LEAST_PASSES))}
    settings = settings.model_copy(update=changes | ({"proposals": 0} if settings.loss == "ce" else {}))
    at_a_time = settings.answers + min(1, settings.proposals)
    later = at_a_time * len(failures) * max((len(example.labels) for example in failures), default=0)
    # 3. The target.
    forward = make_forward(pair.target, "target", reporter.say)
    teacher = LiveTeacher(forward, pair.width, everything, settings.teacher_memory_mb, reporter.say, later)
    stages = max(settings.proposals, min(1, settings.answers))
    return TeacherSetup(teacher, stages, _Samples(pair, failures, settings, teacher, run, reporter, allowed).of)


def _kept(examples: Sequence[Example], blobs: BlobFile, width: int, reporter: Reporter) -> dict[str, TopK]:
    """The rows of every example of which some were kept, by record id."""
    wanted = {example.record_id: example for example in examples if example.sampler.temperature > 0}
    kept: dict[str, TopK] = {}
    problem: StoreError | None = None
    for record_id, example in wanted.items():
        if example.blob is None:
            continue
        try:
            rows = decode_top_k(blobs.read(example.blob))
            if len(rows) < len(example.labels):
                raise DistributionsError(f"{record_id}: found {len(rows)} rows, expected {len(example.labels)} or more")
            kept[record_id] = within_width(rows, width)
        except AccessDenied:  # not lost: a user who may not read them should not learn from less without noticing
            raise
        except StoreError as error:
            problem = problem or error
    without = len(wanted) - len(kept)
    if without:
        reason = f" ({problem})" if problem else ""
        reporter.say(
            f"for {without} of {len(wanted)} generations no teacher probabilities are kept{reason}: learning from "
            "their tokens alone; --teacher live takes them from the target"
        )
    return kept


@dataclass
class _Samples:
    """The samples of each stage: the target's, which stay, and the draft's latest, `on_policy`."""

    pair: Pair
    failures: Sequence[Example]
    settings: Training
    teacher: LiveTeacher
    run: RunDirectory
    reporter: Reporter
    allowed: Budget | None
    on_policy: list[Example] = field(default_factory=list)

    def of(self, stage: int, enough: Enough) -> list[Example]:
        """The samples of stage `stage`: made at its beginning, read again by a resumed run."""
        samples = self.run.samples(stage)
        if samples is None:
            first = self.run.samples(0) if stage else None
            if first is None:
                samples = self._sampled(self.settings.answers, 0, enough)
            else:
                samples = [sample for sample in first if not sample.own]
            samples += self._sampled(min(1, self.settings.proposals), stage + 1, enough)
            self.run.keep_samples(stage, samples)
        self.teacher.forget(self.on_policy)
        self.teacher.add(samples)
        self.on_policy = [sample for sample in samples if sample.own]
        return samples

    def _sampled(self, times: int, number: int, enough: Enough) -> list[Example]:
        """By the target, whose number is 0, or by the draft as it is at the beginning of a stage."""
        what = "on-policy samples of the draft" if number else "target samples"
        # At temperature 0 the target would say again what it said.
        failures = [example for example in self.failures if number or example.sampler.temperature > 0]
        if not failures or not times:
            return []
        self.reporter.say(f"{what}: {len(failures)} prompts" + (f", {times} times" if times > 1 else ""))

        wanted, made = times * len(failures), Counter[str]()

        def count(unit: str, more: int) -> None:
            made[unit] += more
            self.reporter.note(f"{what}: {made['samples']:,} of {wanted:,}, {made['tokens']:,} tokens")

        # Bytes for the caches of a batch.
        room = math.inf if self.allowed is None else SAFETY * room_left(self.allowed)
        (self.pair.draft if number else self.pair.target).eval()
        try:
            samples = sample_outputs(
                self.pair,
                failures,
                times,
                own=number > 0,
                seed=self.settings.seed + (number << 40),
                room=room,
                enough=enough,
                on_sample=lambda _done, _of: count("samples", 1),
                on_tokens=lambda more: count("tokens", more),
            )
        except NoRoom as error:
            self.reporter.say(
                f"{error}; going on without these samples. training.answers and training.proposals of 0 ask for none"
            )
            return []
        if len(samples) < wanted:
            self.reporter.say(
                f"{what}: {len(samples):,} of {wanted:,}, as many as the time limit or the models' context leaves room "
                "for"
            )
        return samples
