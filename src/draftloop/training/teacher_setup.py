"""Who teaches a training, and the texts that a live teacher has to do with beside the logged ones. Makes no step.

`training.teacher` says who: `live`, the target itself; `logged`, what collecting kept of it; `none`, its tokens alone.
Only a live one can say something of texts that nobody collected: new answers to the prompts that failed, and what the
draft writes on them from stage to stage. All are kept in the run's directory, so that a resumed run has the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mlx import nn

from ..config import Training
from ..data.teacher_blobs import BlobFile
from ..data.teacher_top_k import DistributionsError, TopK, decode_top_k, within_width
from ..decoding.batched_generation import NoRoom
from ..errors import AccessDenied, StoreError
from ..models.pair import Pair
from ..runtime.memory import Budget, room_left
from .dataset.curriculum import Enough, More
from .dataset.examples import Example
from .dataset.mixture import TrainingMixture
from .dataset.on_policy import OutputLimits, from_json, sample_outputs, to_json
from .forward import make_forward
from .memory.fitting import SAFETY
from .report import Reporter
from .run import RunDirectory
from .teacher import LiveTeacher, LoggedTeacher, Teacher

LEAST_PASSES = 2  # over the failures themselves; with so many that there are no more, nothing new is asked


@dataclass(frozen=True)
class TeacherSetup:
    """A teacher, how many stages have new texts, and what gives those of each."""

    teacher: Teacher
    stages: int
    more: More


def set_up_teacher(
    pair: Pair,
    material: TrainingMixture,
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
        material: everything that will be trained on or validated with.
        blobs: what collecting kept.
        run: where new texts are kept.
        settings: teacher, answers and proposals.
        reporter: told what is missing, and of the texts made.
        passes: that the training makes over the failures.
        allowed: what MLX may hold; None is no bound.
    """
    everything = [e for part in (material.failures, material.pool, material.validation) for e in part.examples]
    if settings.teacher != "live":
        kept = _kept(everything, blobs, pair.width, reporter) if settings.teacher == "logged" else {}
        return TeacherSetup(LoggedTeacher(kept), 0, lambda _stage, _enough: ())
    if settings.loss == "ce":  # which asks for tokens of the target, and the draft's are none
        settings = settings.model_copy(update={"proposals": 0})
    failures = material.failures.examples
    settings = settings.model_copy(update={"answers": min(settings.answers, max(0, passes - LEAST_PASSES))})
    at_a_time = settings.answers + min(1, settings.proposals)
    later = at_a_time * len(failures) * max((len(example.labels) for example in failures), default=0)
    forward = make_forward(pair.target, "target", reporter.say)
    teacher = LiveTeacher(forward, pair.width, everything, settings.teacher_memory_mb, reporter.say, later)
    stages = max(settings.proposals, min(1, settings.answers))
    return TeacherSetup(teacher, stages, _Texts(pair, failures, settings, teacher, run, reporter, allowed).of)


class _Texts:
    """The texts of each stage: the target's answers, which stay, and the draft's latest."""

    def __init__(
        self,
        pair: Pair,
        failures: Sequence[Example],
        settings: Training,
        teacher: LiveTeacher,
        run: RunDirectory,
        reporter: Reporter,
        allowed: Budget | None,
    ) -> None:
        self._pair, self._failures, self._settings = pair, failures, settings
        self._teacher, self._run, self._reporter, self._allowed = teacher, run, reporter, allowed
        self._own: list[Example] = []

    def of(self, stage: int, enough: Enough) -> list[Example]:
        """What stage `stage` is given: made at its beginning, read again by a resumed run."""
        kept = self._run.texts(stage)
        texts = self._made(stage, enough) if kept is None else from_json(kept)
        if kept is None:
            self._run.keep_texts(stage, to_json(texts))
        self._teacher.forget(self._own)
        self._teacher.add(texts)
        self._own = [text for text in texts if text.own]
        return texts

    def _made(self, stage: int, enough: Enough) -> list[Example]:
        settings, answers = self._settings, []
        if settings.answers:
            first = self._run.texts(0) if stage else None
            if first is None:
                answers = self._written(self._pair.target, settings.answers, 0, enough)
            else:
                answers = [text for text in from_json(first) if not text.own]
        own = self._written(self._pair.draft, 1, stage + 1, enough) if settings.proposals else []
        return [*answers, *own]

    def _written(self, model: nn.Module, times: int, number: int, enough: Enough) -> list[Example]:
        """By the target, whose number is 0, or by the draft as it is at the beginning of a stage."""
        who = "the draft writes" if number else "the target answers"
        # At temperature 0 the target would say again what it said.
        asked = [one for one in self._failures if number or one.sampler.temperature > 0]
        if not asked:
            return []
        self._reporter.say(f"{who} on {len(asked)} prompts anew" + (f", {times} times" if times > 1 else ""))

        of, written = times * len(asked), Counter[str]()

        def count(what: str, more: int) -> None:
            written[what] += more
            texts, tokens = written["texts"], written["tokens"]
            self._reporter.note(f"{who}: {texts:,} of {of:,} texts, {tokens:,} tokens")

        model.eval()
        try:
            found = sample_outputs(
                model,
                asked,
                times,
                own=number > 0,
                seed=self._settings.seed + (number << 40),
                limits=OutputLimits(self._pair.width, self._pair.stop_tokens, self._pair.context, self._room()),
                enough=enough,
                on_text=lambda _done, _of: count("texts", 1),
                on_tokens=lambda more: count("tokens", more),
            )
        except NoRoom as error:
            self._reporter.say(
                f"{error}; going on without these texts. training.answers and training.proposals of 0 ask for none"
            )
            return []
        if len(found) < of:
            self._reporter.say(
                f"{who}: {len(found):,} of {of:,} texts, as many as the time limit or the models' "
                "context leaves room for"
            )
        return found

    def _room(self) -> float:
        """Bytes for the caches of what is written side by side."""
        return math.inf if self._allowed is None else SAFETY * room_left(self._allowed)


def _kept(examples: Sequence[Example], blobs: BlobFile, width: int, reporter: Reporter) -> dict[str, TopK]:
    """The rows of every example of which some were kept, by record id."""
    wanted = {example.record_id: example for example in examples if example.sampler.temperature > 0}
    found: dict[str, TopK] = {}
    problem: StoreError | None = None
    for record_id, example in wanted.items():
        if example.blob is None:
            continue
        try:
            rows = decode_top_k(blobs.read(example.blob))
            if len(rows) < len(example.labels):
                raise DistributionsError(f"{record_id}: found {len(rows)} rows, expected {len(example.labels)} or more")
            found[record_id] = within_width(rows, width)
        except AccessDenied:  # not lost: learning from less would be for want of a right
            raise
        except StoreError as error:
            problem = problem or error
    without = len(wanted) - len(found)
    if without:
        reason = f" ({problem})" if problem else ""
        reporter.say(
            f"of {without} of {len(wanted)} generations nothing is kept of what the target said{reason}: learning "
            "from their tokens alone; --teacher live asks the target"
        )
    return found
