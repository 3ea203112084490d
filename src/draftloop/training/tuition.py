"""Who teaches a training, and the texts that a live teacher is asked for beside the logged ones. Makes no step.

`training.teacher` says who: `live`, the target itself; `logged`, what collecting kept of it; `none`, its tokens alone.
Only a live one can say something of texts that nobody collected: new answers to the prompts that failed, and the
draft's own. They are kept in the run's directory, so that a resumed run goes on with the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..config import Training
from ..distributions import TopK, decode
from ..errors import StoreError
from ..pair import Pair
from ..store.blobs import BlobFile
from .course import Check
from .examples import Example
from .forward import make_forward
from .material import Material
from .report import Reporter
from .rollouts import from_json, roll_out, to_json
from .run import RunDirectory
from .teacher import LiveTeacher, LoggedTeacher, Teacher


@dataclass(frozen=True)
class Tuition:
    """A teacher, and what gives the texts beside the logged ones; None where there are none."""

    teacher: Teacher
    more: Callable[[Check], Sequence[Example]] | None


def tuition(
    pair: Pair, material: Material, blobs: BlobFile, run: RunDirectory, settings: Training, reporter: Reporter
) -> Tuition:
    """What `settings` ask for.

    Args:
        pair: its target is not touched unless it teaches live.
        material: everything that will be trained on or validated with.
        blobs: what collecting kept.
        run: where new texts are kept.
        settings: teacher, answers and proposals.
        reporter: told what is missing, and of the texts made.
    """
    everything = [e for part in (material.failures, material.pool, material.validation) for e in part.examples]
    if settings.teacher != "live":
        kept = _kept(everything, blobs, reporter) if settings.teacher == "logged" else {}
        return Tuition(LoggedTeacher(kept), None)
    times = settings.answers + settings.proposals
    longest = max((len(example.labels) for example in material.failures.examples), default=0)
    later = times * longest * len(material.failures.examples)
    forward = make_forward(pair.target, "target", reporter.say)
    teacher = LiveTeacher(forward, pair.width, everything, settings.teacher_memory_mb, reporter.say, later)
    if times == 0:
        return Tuition(teacher, None)

    def more(check: Check) -> list[Example]:
        kept = run.texts()
        texts = _made(pair, material.failures.examples, settings, reporter, check) if kept is None else from_json(kept)
        if kept is None:
            run.keep_texts(to_json(texts))
        teacher.add(texts)
        return texts

    return Tuition(teacher, more)


def _made(
    pair: Pair, failures: Sequence[Example], settings: Training, reporter: Reporter, check: Check
) -> list[Example]:
    """New texts on the prompts of the failures."""
    found: list[Example] = []
    for model, times, own in ((pair.target, settings.answers, False), (pair.draft, settings.proposals, True)):
        who = "the draft writes" if own else "the target answers"
        if times:
            reporter.say(f"{who} {len(failures)} prompts anew, {times} times each")

        def on_text(done: int, of: int, who: str = who) -> None:
            check()
            reporter.note(f"{who} anew: {done:,} of {of:,} texts")

        was_training = model.training
        model.eval()
        try:
            found += roll_out(
                model,
                failures,
                times,
                own=own,
                seed=settings.seed,
                width=pair.width,
                stop_tokens=pair.stop_tokens,
                on_text=on_text,
            )
        finally:
            model.train(was_training)
    return found


def _kept(examples: Sequence[Example], blobs: BlobFile, reporter: Reporter) -> dict[str, TopK]:
    """The rows of every example of which some were kept, by record id."""
    found: dict[str, TopK] = {}
    problem: StoreError | None = None
    for example in examples:
        if example.blob is None or example.sampler.temperature == 0:
            continue
        try:
            found[example.record_id] = decode(blobs.read(example.blob)).rows
        except StoreError as error:
            problem = problem or error
    without = sum(e.record_id not in found and e.sampler.temperature > 0 for e in examples)
    if without:
        reason = f" ({problem})" if problem else ""
        reporter.say(
            f"of {without} of {len(examples)} generations nothing is kept of what the target said{reason}: learning "
            "from their tokens alone; --teacher live asks the target"
        )
    return found
