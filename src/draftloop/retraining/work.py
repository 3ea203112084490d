"""`Work` is the state of one run of `retrain`, `RetrainResult` what it did. The pair is loaded when first needed."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..config import Config, Models
from ..data.records import Record
from ..data.usable import why_not_measured
from ..data_directory import DataDirectory
from ..evaluation.drift import LoggedGeneration
from ..models.names import ModelNames
from ..registry.registry import Pointer
from ..runtime.signals import StopRequest

if TYPE_CHECKING:
    from ..evaluation.gate_evaluation import OnWork
    from ..evaluation.gate_target import GateTarget
    from ..models.pair import Pair
    from ..training.train import OnStep

Ending = Literal["promoted", "refused", "inconclusive", "rolled back", "nothing"]
Load = Callable[[Models, Path | None, str | None], "Pair"]
Say = Callable[[str], None]

EXIT_CODES: dict[Ending, int] = {"promoted": 0, "rolled back": 0, "nothing": 10, "refused": 11, "inconclusive": 12}


@dataclass
class RetrainResult:
    """What one run of `retrain` did; the fields are those of its line in the audit.

    Attributes:
        outcome: how it ended.
        why: one sentence; empty as long as there is more to do.
        steps: what was done, in order: the actions of `plan.NextAction`.
        run, version: the training or the candidate, where there was one.
        champion: in use afterwards.
        trained: whether a training ended, in a version or in nothing.
        checked: the pointer's sequence at which the champion was compared with the previous draft.
        mark: the end of the target's generations when it began (`log_position`); audited where alarms are settled.
        clock: whether the clock went backward since the last training.
        target: fingerprint of the configured target, None where it is not on this machine.
        recipe: `facts.recipe`.
        failures, trainable, generations: unused failures, all that can be trained on, and generations of the target,
            when it began.
        pruned: versions whose weights were deleted.
        numbers: the figures of the gate evaluation, or of the look.
    """

    outcome: Ending = "nothing"
    why: str = ""
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
    mark: tuple[str, ...] = ()
    pruned: list[str] = field(default_factory=list)
    seconds: float = 0.0
    numbers: dict[str, Any] = field(default_factory=dict)

    def end(self, outcome: Ending, why: str, version: str | None = None) -> None:
        """Set how the run ends, why, and which version it is about."""
        self.outcome, self.why = outcome, why
        self.version = self.version if version is None else version

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return EXIT_CODES[self.outcome]


def loader(config: Config, names: ModelNames | None = None) -> Load:
    """A function that loads the configured pair, and MLX with it.

    Where the target does not teach, its weights stay on disk until something is evaluated with them. `names` are those
    of the data directory.
    """

    def load(models: Models, adapter: Path | None, name: str | None) -> Pair:
        from ..models.pair import load_pair

        return load_pair(models, adapter, name, lazy_target=config.training.teacher != "live", names=names)

    return load


@dataclass
class Work:
    """The state of one run, under the lock.

    Attributes:
        data, config: the data directory; the resolved configuration.
        load: loads the configured pair with an adapter.
        say: called with what is being done.
        on_step: called after every optimizer step with how many are done and of how many.
        stop: asks a training to stop; None is the first Ctrl-C or SIGTERM.
        clock: unix seconds.
        target: scores, times and decodes for the gate; None is that of the pair.
        memory_gb: that MLX may hold while it trains, whatever the configuration allows; None is no further limit.
        result: what was done so far.
        stream: the target's generations, as of the latest reading of the facts.
        on_work: called with what else is done, how many pieces are done, and of how many.
    """

    data: DataDirectory
    config: Config
    load: Load
    say: Say
    on_step: OnStep | None
    stop: StopRequest | None
    clock: Callable[[], float]
    target: GateTarget | None = None
    memory_gb: float | None = None
    result: RetrainResult = field(default_factory=RetrainResult)
    stream: Sequence[LoggedGeneration] = ()
    on_work: OnWork | None = None
    _pair: Pair | None = None

    def pair(self, pointer: Pointer) -> Pair:
        """The configured pair with the champion on its draft, loaded once."""
        champion = self.directory(pointer.champion)
        if self._pair is None:
            self._pair = self.load(self.config.models, champion, pointer.champion)
        else:
            self._pair = self._pair.with_adapter(champion)
        return self._pair

    def with_settled_layers(self, pair: Pair, config: Config, on_step: OnStep) -> Pair:
        """The pair with as many of the target's layers as pay, chosen now where they are not and it is a self-draft.

        Args:
            pair: the configured one.
            config: of a training, within its limits of time and memory.
            on_step: as in `train`.
        """
        from ..evaluation.gate_target import LoggedTarget
        from .layers_choice import settle_layers, without_trials

        if isinstance(self.target, LoggedTarget):
            pair = without_trials(pair, self.data, "nothing is measured where the target is not loaded")
        else:
            pair = settle_layers(pair, self.data, config, self.say, on_step, self.stop, self.target)
        self._pair = pair
        return pair

    def with_settled_vocabulary(self, pair: Pair, version: str, pointer: Pointer) -> Pair:
        """The pair with the tokens that its draft may propose, chosen now with a version where they are not."""
        from ..evaluation.gate_target import LoggedTarget
        from .vocabulary_choice import settle_vocabulary

        if not isinstance(self.target, LoggedTarget):
            pair = pair.with_adapter(self.directory(version), version)
            self._pair = settle_vocabulary(pair, self.data, self.config, self.say, self.target)
        return self.pair(pointer)

    def load_bare(self, models: Models) -> Pair:
        """A pair without an adapter on its draft."""
        return self.load(models, None, None)

    def forget_pair(self) -> None:
        """Load the pair anew next time: the draft of this one has weights of no version."""
        self._pair = None

    def directory(self, version: str | None) -> Path | None:
        """Where a version lies; None for the bare draft."""
        return None if version is None else self.data.registry.root / version

    def watch(self, pointer: Pointer) -> None:
        """Watch the champion: from now on, looks test it on new held-out prompts."""
        self.data.promotion_watch.begin(pointer, self.stream, self.config.gate)

    def records(self, pair: Pair, splits: Container[str] | None = None) -> list[Record]:
        """The generations that the pair can be evaluated on, each once, in the order of the log.

        These may be fewer than the overview counts: without the pair it cannot know which tokens both models have.
        """
        records = {record.id: record for record in self.data.log.records(splits)}
        return [record for record in records.values() if why_not_measured(record, pair.identity, pair.width) is None]
