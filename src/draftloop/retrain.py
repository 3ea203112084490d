"""One idempotent run of the loop: trigger -> train -> gate -> promote or discard, and one line in the audit.

Unattended and under a lock that is tried before MLX is imported; what needs models is imported where it is used. It may
be killed at any moment: whatever was acknowledged is on disk, and the next run finds by `outlook` what is left to do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .config import Config, Models, Training
from .data_directory import DataDirectory
from .errors import ChampionMoved, Interrupted, RunError, StoreError, TrainingFailed
from .interrupt import StopRequest
from .outlook import PURPOSE, History, Situation, Step, look, next_step
from .records import Record
from .registry import Pointer
from .replay import reservoir
from .training.run import RunDirectory
from .verdicts import Attempt, Verdict

if TYPE_CHECKING:
    from .pair import Pair
    from .training.train import TrainResult
    from .trial import Timing, Trial

Ending = Literal["promoted", "refused", "inconclusive", "rolled back", "nothing"]
Load = Callable[[Models, Path | None, str | None], "Pair"]
Say = Callable[[str], None]

EXIT_CODES: dict[Ending, int] = {"promoted": 0, "rolled back": 0, "nothing": 10, "refused": 11, "inconclusive": 12}
_GIGABYTE = 1 << 30


@dataclass
class Outcome:
    """What one run of `retrain` did; the audit's line says the same.

    Attributes:
        outcome: how it ended.
        why: one sentence.
        steps: what was done, in order: actions of `outlook.Step`.
        run, version: of the training or the candidate, where there was one.
        champion: in use afterwards.
        trained: whether a training ended.
        checked: the pointer's sequence, where champion and previous were compared and nothing changed.
        failures, generations: unused failures, and generations of the target, when it began.
        pruned: versions whose weights were deleted.
        numbers: of the trial.
    """

    outcome: Ending
    why: str
    steps: list[str] = field(default_factory=list)
    run: str | None = None
    version: str | None = None
    champion: str | None = None
    trained: bool = False
    checked: int | None = None
    clock: bool = False
    failures: int = 0
    generations: int = 0
    pruned: list[str] = field(default_factory=list)
    seconds: float = 0.0
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """What the command line ends with."""
        return EXIT_CODES[self.outcome]


def retrain(
    data: DataDirectory,
    config: Config,
    *,
    force: bool = False,
    load: Load | None = None,
    say: Say = lambda _line: None,
    stop: StopRequest | None = None,
    clock: Callable[[], float] = time.time,
    timing: Timing | None = None,
) -> Outcome:
    """Do what is due, and write one line about it.

    Args:
        data: where everything lies.
        config: resolved.
        force: train whatever the count, the interval or a waiting candidate says; the gate is never passed over.
        load: gives the configured pair with an adapter; `pair.load_pair` by default.
        say: is told what is being done.
        stop: asks to stop; by default the first Ctrl-C or SIGTERM does while training.
        clock: unix seconds.
        timing: measures what the forecast rests on; `costs.measure` by default.

    Raises:
        LockedError: another process trains here.
        TrainingFailed, Interrupted, StoreError, PairError, AdapterError: as in training; the audit has it too, where it
            can still be written.
    """
    with data.training_lock():
        began = time.monotonic()
        work = _Work(data, config, force, load or _load, say, stop, clock, timing)
        try:
            found = work.all()
        except BaseException as error:
            try:
                work.audit(work.ended(error), began)
            except StoreError as also:
                error.add_note(f"the audit could not be written either: {also}")
            raise
        work.audit({"outcome": found.outcome, "why": found.why}, began)
        found.seconds = time.monotonic() - began
    return found


class _Work:
    """One run, under the lock."""

    def __init__(
        self,
        data: DataDirectory,
        config: Config,
        force: bool,
        load: Load,
        say: Say,
        stop: StopRequest | None,
        clock: Callable[[], float],
        timing: Timing | None,
    ) -> None:
        self.data, self.config, self.force = data, config, force
        self.load, self.say, self.stop, self.clock, self.timing = load, say, stop, clock, timing
        self.outcome = Outcome("nothing", "")
        self.pair: Pair | None = None

    def all(self) -> Outcome:
        """Step after step until a verdict, or nothing is left to do."""
        facts = look(self.data, self.config, self.clock())
        outcome = self.outcome
        outcome.failures, outcome.generations = facts.overview.failures_new, len(facts.overview.stream)
        outcome.clock = facts.minutes is not None and facts.minutes < 0
        checked = False
        while True:
            step = next_step(facts, self.config, force=self.force and not outcome.trained, checked=checked)
            self.say(f"{step.action}: {step.why}")
            outcome.steps.append(step.action)
            self._do(step, facts)
            outcome.champion = self.data.registry.champion()
            if step.action not in ("check", "resume", "train") or outcome.outcome == "rolled back":
                break
            checked = True
            facts = look(self.data, self.config, self.clock())
        if outcome.outcome in ("promoted", "refused"):
            kept = self.config.retrain.keep_versions
            outcome.pruned = self.data.registry.prune(kept, protected=_some(facts.overview.candidate))
        return outcome

    def audit(self, ending: dict[str, Any], began: float) -> None:
        """The one line of this run."""
        values = asdict(self.outcome)
        line = {"when": self.clock(), **values, **ending, "seconds": time.monotonic() - began}
        self.data.audit.append(line)

    def ended(self, error: BaseException) -> dict[str, Any]:
        """What the audit says of a run that an error ended; a failed training is not tried again at once."""
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        failed = isinstance(error, TrainingFailed)
        outcome = "interrupted" if stopped else "failed" if failed else "error"
        return {"outcome": outcome, "why": str(error) or "interrupted", "trained": failed}

    def _do(self, step: Step, facts: Situation) -> None:
        outcome = self.outcome
        if step.action == "finish":
            pointer = self.data.registry.promote(str(step.subject), step.why, facts.pointer.sequence)
            outcome.outcome, outcome.why, outcome.version = "promoted", step.why, pointer.champion
        elif step.action == "check":
            self._check(step, facts)
        elif step.action == "resume":
            self._resume(str(step.subject))
        elif step.action == "train":
            self._train()
        elif step.action == "gate":
            self._gate(str(step.subject), facts)
        else:
            outcome.outcome = "nothing" if step.action == "nothing" else "inconclusive"
            outcome.why, outcome.version = step.why, step.subject

    # Training

    def _train(self) -> None:
        from .training.train import train

        for run in RunDirectory.unfinished(self.data.runs, PURPOSE, self.data.files):
            self.say(f"run {run.id} was cut off and cannot be gone on with: starting clean")
            run.give_up("cut off, without a checkpoint on top of the champion")
        pair = self._pair()
        with self._limited():
            self._trained(
                train(
                    pair,
                    self.data,
                    self._config_of_training(),
                    on_step=self._watch_memory,
                    stop=self.stop,
                    purpose=PURPOSE,
                )
            )

    def _resume(self, run: str) -> None:
        from .training.train import resume

        try:
            with self._limited():
                self._trained(
                    resume(
                        run,
                        self.data,
                        load=lambda models: self.load(models, None, None),
                        on_step=self._watch_memory,
                        stop=self.stop,
                    )
                )
        except RunError as error:
            self.say(f"run {run} cannot be gone on with: {error}")
            RunDirectory.find(self.data.runs, run, self.data.files).give_up(str(error))

    def _trained(self, result: TrainResult) -> None:
        self.outcome.trained, self.outcome.run, self.outcome.version = True, result.run, result.version
        self.pair = None  # its draft carries weights that are no champion's
        self.say(
            f"trained {result.version} in run {result.run}: {result.steps} steps ({result.ended}), "
            f"{result.seconds:.0f} s, on {result.failures} failures"
        )

    def _config_of_training(self) -> Config:
        limits = [limit for limit in (self.config.training.max_minutes, self.config.retrain.max_minutes) if limit]
        training: Training = self.config.training.model_copy(update={"max_minutes": min(limits, default=None)})
        return self.config.model_copy(update={"training": training})

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """MLX within `retrain.max_memory_gb`."""
        limit = self.config.retrain.max_memory_gb
        if limit is None:
            yield
            return
        import mlx.core as mx

        before = mx.set_memory_limit(int(limit * _GIGABYTE))
        try:
            yield
        finally:
            mx.set_memory_limit(before)

    def _watch_memory(self, _done: int, _of: int) -> None:
        limit = self.config.retrain.max_memory_gb
        if limit is None:
            return
        import mlx.core as mx

        peak = mx.get_peak_memory() / _GIGABYTE
        if peak > limit:
            raise TrainingFailed(
                f"training took {peak:.2f} GB and retrain.max_memory_gb is {limit:g}; lower training.batch_size or "
                "training.teacher_memory_mb, or allow more"
            )

    # Judging

    def _gate(self, version: str, facts: Situation) -> None:
        registry, verdicts, pointer = self.data.registry, self.data.verdicts, facts.pointer
        self.outcome.version = version
        if self._is_the_champion_again(version, pointer):
            self._refuse_unscored(version, pointer)
            return
        pair = self._pair()
        records = {record.id: record for record in self._own_records({"heldout"})}
        most = self.config.gate.max_heldout_generations
        epoch, attempt = verdicts.open_attempt(
            Attempt(version, pointer.champion),
            pair.identity,
            self.config.gate.max_attempts,
            records.keys(),
            lambda number: [record.id for record in reservoir(records.values(), most, number)],
        )
        self.say(f"scoring {len(epoch.record_ids)} held-out generations: attempt {attempt} of epoch {epoch.number}")
        trial = self._trial(
            [records[record_id] for record_id in epoch.record_ids],
            registry.resolve("champion"),
            registry.resolve(version),
            attempt,
        )
        self._settle(trial, version, pointer, epoch.number, attempt)

    def _is_the_champion_again(self, version: str, pointer: Pointer) -> bool:
        """Whether training on the champion kept the weights that it began with."""
        manifest = self.data.registry.manifest(version)
        return manifest.parent == pointer.champion and manifest.metrics.get("best_step") == 0

    def _refuse_unscored(self, version: str, pointer: Pointer) -> None:
        """A verdict that needs no held-out prompt, so it spends nothing of the epoch."""
        why = "no later weights did better on validation than those it started from, which are the champion's"
        self.data.verdicts.give(self._verdict(version, pointer, "refused", (why,), 0, 0, {}))
        self.outcome.outcome, self.outcome.why = "refused", why

    def _verdict(
        self,
        version: str,
        pointer: Pointer,
        outcome: Literal["promoted", "refused"],
        reasons: tuple[str, ...],
        epoch: int,
        attempt: int,
        numbers: dict[str, Any],
    ) -> Verdict:
        return Verdict(
            version=version,
            champion=pointer.champion,
            outcome=outcome,
            reasons=reasons,
            epoch=epoch,
            attempt=attempt,
            pointer=pointer.sequence,
            when=self.clock(),
            numbers=numbers,
        )

    def _settle(self, trial: Trial, version: str, pointer: Pointer, epoch: int, attempt: int) -> None:
        """Write the verdict down, then act on it: what a crash cuts off in between is finished by the next run."""
        outcome, decision = self.outcome, trial.decision
        outcome.why, outcome.numbers = "; ".join(decision.reasons), trial.to_json()
        if decision.outcome == "inconclusive":
            outcome.outcome = "inconclusive"
            return
        promoted = decision.outcome == "promote"
        numbers = {**trial.to_json(), "conditions": self._conditions()}
        said: Literal["promoted", "refused"] = "promoted" if promoted else "refused"
        self.data.verdicts.give(self._verdict(version, pointer, said, decision.reasons, epoch, attempt, numbers))
        if promoted:
            try:
                self.data.registry.promote(version, outcome.why, pointer.sequence)
            except ChampionMoved as moved:
                self.data.verdicts.withdraw(version)
                outcome.outcome, outcome.why = "inconclusive", f"{moved}; {version} is gated again"
                return
        outcome.outcome = "promoted" if promoted else "refused"

    def _check(self, step: Step, facts: Situation) -> None:
        """Champion against previous on what was generated since: the gate's own test, with the roles changed over."""
        registry, pointer = self.data.registry, facts.pointer
        self._pair()
        history = History(self.data.audit.entries())
        recent = self._own_records()[history.settled :]
        records = [record for record in recent if record.adapter == pointer.champion]
        champion = registry.resolve("champion")
        previous = registry.resolve(pointer.previous or "none")
        trial = self._trial(records, champion, previous, history.checks(pointer) + 1)
        self.outcome.checked = pointer.sequence
        if trial.decision.outcome != "promote":
            self.say(f"{pointer.champion} stays: {'; '.join(trial.decision.reasons)}")
            return
        self.outcome.outcome, self.outcome.version = "rolled back", pointer.champion
        self.outcome.why = f"{step.why}, and the draft before it is better there: {'; '.join(trial.decision.reasons)}"
        self.outcome.numbers = trial.to_json()
        registry.rollback(self.outcome.why, pointer.sequence)

    def _trial(self, records: list[Record], champion: Path | None, candidate: Path | None, attempt: int) -> Trial:
        from .costs import measure
        from .trial import hold_trial

        return hold_trial(
            self._pair(),
            records,
            champion,
            candidate,
            attempt=attempt,
            config=self.config,
            seed=self.config.training.seed + attempt,
            timing=self.timing or measure,
        )

    def _pair(self) -> Pair:
        """The configured pair with the champion on its draft, loaded once."""
        champion = self.data.registry.resolve("champion")
        if self.pair is None:
            self.pair = self.load(self.config.models, champion, champion.name if champion else None)
        else:
            self.pair = self.pair.with_adapter(champion)
        return self.pair

    def _own_records(self, splits: Container[str] | None = None) -> list[Record]:
        """What the survey's stream is of: this target's generations, each once, in the log's order."""
        identity = self._pair().identity
        found = {record.id: record for record in self.data.log.records(splits)}
        return [r for r in found.values() if r.pair.target == identity.target and r.target_output]

    def _conditions(self) -> dict[str, Any]:
        speculative = self.config.speculative
        return {
            "pair": asdict(self._pair().identity),
            "rule": speculative.rule,
            "num_draft_tokens": speculative.num_draft_tokens,
            "gate": self.config.gate.model_dump(),
        }


def _load(models: Models, adapter: Path | None, name: str | None) -> Pair:
    from .pair import load_pair

    return load_pair(models, adapter, name)


def _some(name: str | None) -> set[str]:
    return set() if name is None else {name}


def give_way(niceness: int) -> None:
    """Lower this process's priority to at least `niceness`, from 0 to 19; a system that refuses is let be."""
    with suppress(OSError):
        os.nice(max(0, niceness - os.nice(0)))
