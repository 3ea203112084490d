"""`DataDirectory` says where everything in one data directory lies. Making one touches nothing and imports no mlx.

The directory itself is made with the first thing to keep: a generation, a version, the audit's line of a `retrain`. A
command that only reads, is refused or has nothing to train on does not make it: such a command keeps no cache, and
takes no lock where `exists` is False.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from .config import Data
from .data.joined_groups import PromptGroups
from .data.log import FailureLog
from .data.replay import ReplayBuffer
from .data.teacher_blobs import BlobFile
from .errors import AccessDenied, DraftloopError
from .evaluation.latency_profiles import LatencyProfiles
from .evaluation.promotion_watch import PromotionWatch
from .models.names import ModelNames
from .registry.registry import Registry
from .registry.verdicts import Verdicts
from .store.files import FILES, Files
from .store.journal import Journal
from .store.lock import Lock
from .store.presence import Presence


@dataclass(frozen=True)
class DataDirectory:
    """The places under `root` (`data/`, `--data-dir`).

    Attributes:
        settings: capacity of the replay buffer, and how hard the log syncs.
        files: the seam for the operations that change something.
    """

    root: Path
    settings: Data = field(default_factory=Data)
    files: Files = FILES

    @property
    def exists(self) -> bool:
        """Whether the directory is there."""
        return self.root.exists()

    @cached_property
    def log(self) -> FailureLog:
        """Every finished generation."""
        path = self.root / "failures" / "failures.jsonl"
        return FailureLog(path, self.files, self.settings.full_sync, self._add_trained_groups)

    def _add_trained_groups(self, groups: PromptGroups) -> None:
        """The prompts that versions learned from stay prompts of training, even if people delete the log.

        Manifests and a replay buffer that cannot be read are passed over; whoever works with them says so.
        """
        with suppress(AccessDenied):
            for record in self.replay.records():
                groups.learn(record.opening, record.split)
        for name in [*self.registry.pruned(), *self.registry.versions()]:
            with suppress(DraftloopError):
                for group in self.registry.manifest(name).trained_groups:
                    groups.learn_trained(group)

    @cached_property
    def blobs(self) -> BlobFile:
        """The target's top-k tokens at every position; the records of log and replay buffer refer to them."""
        return BlobFile(self.log.path.with_name("teacher.bin"), self.files, self.settings.full_sync)

    @cached_property
    def replay(self) -> ReplayBuffer:
        """Generations that keep the draft from forgetting."""
        return ReplayBuffer(self.root / "replay", self.settings.replay_capacity, self.files)

    @cached_property
    def registry(self) -> Registry:
        """The versions of the adapter."""
        return Registry(self.root / "adapters", self.files)

    @cached_property
    def costs(self) -> LatencyProfiles:
        """The latency profiles, by pair and machine."""
        return LatencyProfiles(self.root / "costs.json", self.files)

    @cached_property
    def names(self) -> ModelNames:
        """The names of models in this directory."""
        return ModelNames(self.root, self.files)

    @cached_property
    def verdicts(self) -> Verdicts:
        """The gate's verdicts on the versions."""
        return Verdicts(self.registry.root, self.files)

    @cached_property
    def promotion_watch(self) -> PromotionWatch:
        """The looks at what was promoted."""
        return PromotionWatch(self.registry.root, self.files)

    @property
    def runs(self) -> Path:
        """The directories of the trainings."""
        return self.root / "runs"

    @cached_property
    def audit(self) -> Journal:
        """One line for every `retrain`."""
        return Journal(self.runs / "audit.jsonl", self.files)

    def training_lock(self) -> Lock:
        """The lock of whoever trains or gates here. It is tried once, because waiting could take hours."""
        return Lock(self.runs / ".lock", timeout=0, files=self.files)

    @cached_property
    def presence(self) -> Presence:
        """The holder of that lock, for others to see."""
        return Presence(self.runs / ".at-work")
