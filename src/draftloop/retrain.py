"""One idempotent run of the loop: trigger -> train -> gate -> promote or discard, and one line in the audit.

Unattended and under a lock that is tried before MLX is imported; what needs models is imported where it is used. It may
be killed at any moment: whatever was acknowledged is on disk, and the next run finds by `outlook` what is left to do.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .adapter_format import WEIGHTS
from .config import Config, Models, Training
from .data_directory import DataDirectory
from .errors import (
    AdapterError,
    ChampionMoved,
    Interrupted,
    NothingToDo,
    PairError,
    RunError,
    StoreError,
    TrainingFailed,
)
from .interrupt import StopRequest
from .model_files import local_fingerprint
from .outlook import PURPOSE, History, Situation, Step, look, next_step
from .records import PairId, Record
from .registry import Pointer
from .replay import reservoir
from .training.run import RunDirectory
from .verdicts import Attempt, Epoch, Verdict

if TYPE_CHECKING:
    from .pair import Pair
    from .training.train import TrainResult
    from .trial import Timing, Trial

Ending = Literal["promoted", "refused", "inconclusive", "rolled back", "nothing"]
Load = Callable[[Models, Path | None, str | None], "Pair"]
Say = Callable[[str], None]

EXIT_CODES: dict[Ending, int] = {"promoted": 0, "rolled back": 0, "nothing": 10, "refused": 11, "inconclusive": 12}
MAX_RESUMPTIONS = 3  # from one and the same step: what ends a run there ends it again
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
        trained: whether a training ended, in a version or in nothing.
        checked: the pointer's sequence, where champion and previous were compared and nothing changed.
        clock: whether the clock went backward since the last training.
        target: fingerprint of the configured target, None where it is not on this machine.
        recipe: `outlook.recipe`.
        failures, trainable, generations: unused failures, all that can be trained on, and generations of the target,
            when it began.
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
    target: str | None = None
    recipe: str | None = None
    failures: int = 0
    trainable: int = 0
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
        outcome.failures, outcome.trainable = facts.overview.failures_new, facts.overview.failures_trainable
        outcome.generations, outcome.recipe = len(facts.overview.stream), facts.recipe
        outcome.target = local_fingerprint(self.config.models.target)
        outcome.clock = facts.minutes is not None and facts.minutes < 0
        checked = False
        while True:
            step = next_step(facts, self.config, force=self.force and not outcome.trained, checked=checked)
            if step.action == "train" and outcome.trained:
                raise StoreError(f"{outcome.version} was trained and is no candidate: see `status` for what is damaged")
            self.say(f"{step.action}: {step.why}")
            outcome.steps.append(step.action)
            self._do(step, facts)
            outcome.champion = self.data.registry.champion()
            if outcome.why:
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
            self._finish(str(step.subject), step.why, facts.pointer)
        elif step.action == "check":
            self._check(step, facts)
        elif step.action == "resume":
            with self._giving_up():
                self._resume(str(step.subject))
        elif step.action == "train":
            with self._giving_up():
                self._train()
        elif step.action == "gate":
            self._gate(str(step.subject), facts)
        else:
            outcome.outcome = "nothing" if step.action == "nothing" else "inconclusive"
            outcome.why, outcome.version = step.why, step.subject

    # Training

    def _train(self) -> None:
        from .training.train import train

        for run in self._unfinished():
            self.say(f"run {run.id} was cut off and cannot be gone on with: starting clean")
            run.give_up("cut off, without a checkpoint on top of this champion and pair")
        pair = self._pair(self.data.registry.pointer())
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

        self.outcome.run = run
        try:
            if RunDirectory.find(self.data.runs, run, self.data.files).note_resumption() > MAX_RESUMPTIONS:
                raise RunError(f"it was gone on with {MAX_RESUMPTIONS} times and came no further")
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
        except (RunError, PairError, AdapterError) as error:
            self.say(f"run {run} cannot be gone on with: {error}")
            RunDirectory(self.data.runs / run, self.data.files).give_up(str(error))

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """A training that failed by its numbers is not gone on with: it would fail again."""
        try:
            yield
        except TrainingFailed as error:
            for run in self._unfinished():
                run.give_up(str(error))
            raise
        except NothingToDo as error:
            self.outcome.trained, self.outcome.why = True, str(error)

    def _unfinished(self) -> list[RunDirectory]:
        return RunDirectory.unfinished(self.data.runs, PURPOSE, self.data.files)

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

    def _finish(self, version: str, why: str, pointer: Pointer) -> None:
        """Make the promotion that a crash cut off."""
        outcome = self.outcome
        outcome.version = version
        try:
            self.data.registry.promote(version, why, pointer.sequence)
        except AdapterError as error:
            given = self.data.verdicts.of(version)
            assert given is not None  # it said `promoted` when the situation was looked at, under this lock
            outcome.outcome, outcome.why = "refused", f"it passed the gate and was damaged since: {error}"
            self.data.verdicts.give(replace(given, outcome="refused", reasons=(outcome.why,)))
            return
        outcome.outcome, outcome.why = "promoted", why

    def _gate(self, version: str, facts: Situation) -> None:
        verdicts, pointer, gate = self.data.verdicts, facts.pointer, self.config.gate
        self.outcome.version = version
        unfit = self._unfit(version)
        if unfit is not None:
            self._refuse_unscored(version, pointer, unfit)
            return
        pair = self._pair(pointer)
        records = {record.id: record for record in self._own_records(pair, {"heldout"})}
        epoch, attempt = verdicts.open_attempt(
            self._attempt(version, pointer.champion),
            pair.identity,
            gate,
            {record.id: record.group for record in records.values()},
            lambda number: _heldout_sample(records.values(), gate.max_heldout_generations, number),
        )
        self.say(f"scoring {len(epoch.record_ids)} held-out generations: attempt {attempt} of epoch {epoch.number}")
        trial = self._trial(
            [records[record_id] for record_id in epoch.record_ids],
            pointer.champion,
            version,
            attempt,
            pointer,
            alpha=epoch.alpha,
        )
        self._settle(trial, version, pointer, epoch, attempt)

    def _unfit(self, version: str) -> str | None:
        """Why a candidate is refused whatever its scores, so that none are taken and nothing is spent; None if not."""
        registry = self.data.registry
        try:
            manifest = registry.verify(registry.root / version)
        except AdapterError as error:
            return f"it is damaged: {error}"
        if manifest is not None and manifest.metrics.get("best_step") == 0:
            return "no later weights did better on validation than those it started from"
        if manifest is not None and manifest.parent in registry.rolled_back():
            return f"{manifest.parent}, on top of which it was trained, was rolled back since"
        return None

    def _attempt(self, version: str, champion: str | None) -> Attempt:
        def weights(name: str) -> str:
            return self.data.registry.manifest(name).files[WEIGHTS].sha256

        return Attempt(version, champion, weights(version), weights(champion) if champion else None)

    def _refuse_unscored(self, version: str, pointer: Pointer, why: str) -> None:
        """A verdict that needs no held-out prompt, so it spends nothing of the epoch."""
        self.data.verdicts.give(self._verdict(version, pointer, "refused", (why,)))
        self.outcome.outcome, self.outcome.why = "refused", why

    def _verdict(
        self,
        version: str,
        pointer: Pointer,
        outcome: Literal["promoted", "refused"],
        reasons: tuple[str, ...],
        epoch: Epoch | None = None,
        attempt: int = 0,
        numbers: dict[str, Any] | None = None,
    ) -> Verdict:
        return Verdict(
            version=version,
            champion=pointer.champion,
            outcome=outcome,
            reasons=reasons,
            epoch=epoch.number if epoch else 0,
            attempt=attempt,
            pointer=pointer.sequence,
            when=self.clock(),
            pair=epoch.pair if epoch else None,
            numbers=numbers or {},
        )

    def _settle(self, trial: Trial, version: str, pointer: Pointer, epoch: Epoch, attempt: int) -> None:
        """Write the verdict down, then act on it: what a crash cuts off in between is finished by the next run."""
        outcome, decision = self.outcome, trial.decision
        outcome.why, outcome.numbers = "; ".join(decision.reasons), trial.to_json()
        if decision.outcome == "inconclusive":
            outcome.outcome = "inconclusive"
            return
        promoted = decision.outcome == "promote"
        numbers = {**trial.to_json(), "conditions": self._conditions(epoch.pair)}
        said: Literal["promoted", "refused"] = "promoted" if promoted else "refused"
        verdict = self._verdict(version, pointer, said, decision.reasons, epoch, attempt, numbers)
        try:
            self.data.registry.expect(pointer.sequence)
            self.data.verdicts.give(verdict)
            if promoted:
                self.data.registry.promote(version, outcome.why, pointer.sequence)
        except ChampionMoved as moved:
            self.data.verdicts.withdraw(version)
            outcome.outcome, outcome.why = "inconclusive", f"{moved}; {version} is gated again"
            return
        outcome.outcome = said

    def _check(self, step: Step, facts: Situation) -> None:
        """Champion against previous on what was generated since: the gate's own test, with the roles changed over."""
        registry, pointer = self.data.registry, facts.pointer
        if pointer.previous is not None:
            try:
                registry.verify(registry.root / pointer.previous)
            except AdapterError as error:
                self.say(f"{pointer.champion} stays: there is nothing to go back to: {error}")
                self.outcome.checked = pointer.sequence
                return
        history = History(self.data.audit.entries(), self.outcome.target)
        recent = self._own_records(self._pair(pointer))[history.settled :]
        records = [record for record in recent if record.adapter == pointer.champion]
        records = records[-self.config.gate.max_heldout_generations :]
        attempt = history.checks(pointer) + 1
        trial = self._trial(records, pointer.champion, pointer.previous, attempt, pointer, alpha=self.config.gate.alpha)
        self.outcome.checked = pointer.sequence
        if trial.decision.outcome != "promote":
            self.say(f"{pointer.champion} stays: {'; '.join(trial.decision.reasons)}")
            return
        self.outcome.outcome, self.outcome.version = "rolled back", pointer.champion
        self.outcome.why = f"{step.why}, and the draft before it is better there: {'; '.join(trial.decision.reasons)}"
        self.outcome.numbers = trial.to_json()
        registry.rollback(self.outcome.why, pointer.sequence)

    def _trial(
        self,
        records: list[Record],
        champion: str | None,
        candidate: str | None,
        attempt: int,
        pointer: Pointer,
        alpha: float,
    ) -> Trial:
        from .costs import measure
        from .trial import hold_trial

        gate = self.config.gate.model_copy(update={"alpha": alpha})
        return hold_trial(
            self._pair(pointer),
            records,
            self._directory(champion),
            self._directory(candidate),
            attempt=attempt,
            config=self.config.model_copy(update={"gate": gate}),
            seed=self.config.training.seed + attempt,
            timing=self.timing or measure,
        )

    def _directory(self, version: str | None) -> Path | None:
        return None if version is None else self.data.registry.root / version

    def _pair(self, pointer: Pointer) -> Pair:
        """The configured pair with the champion on its draft, loaded once.

        Raises:
            StoreError: the champion is damaged, and how to get out of that.
        """
        champion = self._directory(pointer.champion)
        if champion is not None:
            self._require_whole(champion)
        if self.pair is None:
            self.pair = self.load(self.config.models, champion, pointer.champion)
        else:
            self.pair = self.pair.with_adapter(champion)
        return self.pair

    def _require_whole(self, champion: Path) -> None:
        try:
            self.data.registry.verify(champion)
        except AdapterError as error:
            raise StoreError(
                f"the champion is not whole: {error} `adapters rollback` goes back to the draft before it, and "
                "`adapters promote` to any other version"
            ) from None

    def _own_records(self, pair: Pair, splits: Container[str] | None = None) -> list[Record]:
        """What the survey's stream is of: this target's generations, each once, in the log's order."""
        found = {record.id: record for record in self.data.log.records(splits)}
        return [r for r in found.values() if r.pair.target == pair.identity.target and r.target_output]

    def _conditions(self, pair: PairId) -> dict[str, Any]:
        speculative = self.config.speculative
        return {
            "pair": asdict(pair),
            "rule": speculative.rule,
            "num_draft_tokens": speculative.num_draft_tokens,
            "gate": self.config.gate.model_dump(),
        }


def _heldout_sample(records: Iterable[Record], most: int, seed: int) -> list[str]:
    """Ids of at most so many records: one of as many prompt groups as there are, then others, every source in
    proportion."""
    by_group: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_group[record.group].append(record)
    chosen = reservoir((members[0] for members in by_group.values()), most, seed)
    others = (record for members in by_group.values() for record in members[1:])
    chosen += reservoir(others, most - len(chosen), seed)
    return [record.id for record in chosen]


def _load(models: Models, adapter: Path | None, name: str | None) -> Pair:
    from .pair import load_pair

    return load_pair(models, adapter, name)


def _some(name: str | None) -> set[str]:
    return set() if name is None else {name}


def give_way(niceness: int) -> None:
    """Lower this process's priority to at least `niceness`, from 0 to 19; a system that refuses is let be."""
    with suppress(OSError):
        os.nice(max(0, niceness - os.nice(0)))
